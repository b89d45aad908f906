"""How many parameters a model has, and how many of them a rank holds.

V vocabulary, H hidden size, F width of a feed-forward branch, P query heads x head size, G key/value heads x head size.
A layer: norms 2H, QKV (P + 2G)(H + 1), attention output PH, feed-forward 3HF; without biases P + 2G less, with norms
of queries and keys two head sizes more. Around the layers: embedding VH, output VH unless tied (a scalar
head: H), last norm H. With
P = G = H that is 2VH + L(4H^2 + 3H + 3HF + 2H) + H.
"""

from __future__ import annotations

from qwen_megatron.config.sections.model import ModelConfig


def layer_matrix_parameters(model: ModelConfig) -> int:
    """Weights of one layer that take part in matrix products."""
    query = model.num_attention_heads * model.kv_channels
    key = model.num_query_groups * model.kv_channels
    return model.hidden_size * (2 * query + 2 * key + 3 * model.ffn_hidden_size)


def layer_split_parameters(model: ModelConfig) -> int:
    """Parameters of one layer that tensor parallelism divides: matrices and QKV biases."""
    biases = (model.num_attention_heads + 2 * model.num_query_groups) * model.kv_channels
    return layer_matrix_parameters(model) + (biases if model.add_qkv_bias else 0)


def layer_norm_parameters(model: ModelConfig) -> int:
    """Parameters of one layer that every tensor-parallel rank holds whole: its norms."""
    return 2 * model.hidden_size + (2 * model.kv_channels if model.qk_layernorm else 0)


def count_parameters(model: ModelConfig, *, has_scalar_head: bool = False) -> int:
    """Parameters of the whole model without padding; a tied matrix counts once, a scalar head is one row."""
    rows = model.vocab_size
    if has_scalar_head:
        rows += 1
    elif not model.tie_word_embeddings:
        rows += model.vocab_size
    layer = layer_split_parameters(model) + layer_norm_parameters(model)
    return rows * model.hidden_size + model.num_layers * layer + model.hidden_size


def parameters_per_stage(
    model: ModelConfig,
    *,
    tensor_size: int,
    padded_vocab_size: int,
    layers_per_stage: tuple[int, ...],
    has_scalar_head: bool = False,
) -> tuple[int, ...]:
    """Parameters that one rank of each pipeline stage stores.

    Norms are whole on every tensor-parallel rank; the vocabulary counts with its padding. With a tied output the last
    of several stages keeps a copy of the embedding; a scalar head is whole on every tensor-parallel rank.

    Args:
        model: Architecture.
        tensor_size: Tensor-parallel ranks; must divide heads, key/value heads, feed-forward width and vocabulary.
        padded_vocab_size: Rows of the embedding over all tensor-parallel ranks.
        layers_per_stage: Layers of each stage.
        has_scalar_head: One row in place of the output layer.
    Returns:
        One number for each stage.
    """
    vocabulary = padded_vocab_size // tensor_size * model.hidden_size
    layer = layer_split_parameters(model) // tensor_size + layer_norm_parameters(model)
    last = len(layers_per_stage) - 1
    counts = []
    for stage, num_layers in enumerate(layers_per_stage):
        around = vocabulary if stage == 0 else 0
        if stage == last:
            shares = model.tie_word_embeddings and last == 0
            output = model.hidden_size if has_scalar_head else (0 if shares else vocabulary)
            around += output + model.hidden_size
        counts.append(num_layers * layer + around)
    return tuple(counts)
