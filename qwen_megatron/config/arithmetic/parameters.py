"""How many parameters a model has, and how many of them a rank holds.

V vocabulary, H hidden size, F width of a feed-forward branch, P query heads x head size, G key/value heads x head size.
A layer: norms 2H, QKV (P + 2G)(H + 1), attention output PH, feed-forward 3HF; without biases P + 2G less, with norms
of queries and keys two head sizes more. Around the layers: embedding VH, output VH unless tied, last norm H. With
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


def count_parameters(model: ModelConfig) -> int:
    """Parameters of the whole model without padding; a tied matrix counts once."""
    matrices = 1 if model.tie_word_embeddings else 2
    layer = layer_split_parameters(model) + layer_norm_parameters(model)
    return matrices * model.vocab_size * model.hidden_size + model.num_layers * layer + model.hidden_size


def parameters_per_stage(
    model: ModelConfig, *, tensor_size: int, padded_vocab_size: int, layers_per_stage: tuple[int, ...]
) -> tuple[int, ...]:
    """Parameters that one rank of each pipeline stage stores.

    Norms are whole on every tensor-parallel rank; the vocabulary counts with its padding. With a tied output the last
    of several stages keeps a copy of the embedding.

    Args:
        model: Architecture.
        tensor_size: Tensor-parallel ranks; must divide heads, key/value heads, feed-forward width and vocabulary.
        padded_vocab_size: Rows of the embedding over all tensor-parallel ranks.
        layers_per_stage: Layers of each stage.
    Returns:
        One number for each stage.
    """
    vocabulary = padded_vocab_size // tensor_size * model.hidden_size
    layer = layer_split_parameters(model) // tensor_size + layer_norm_parameters(model)
    last = len(layers_per_stage) - 1
    counts = []
    for stage, num_layers in enumerate(layers_per_stage):
        matrices = int(stage == 0) + int(stage == last)
        if model.tie_word_embeddings and last == 0:
            matrices = 1
        counts.append(num_layers * layer + matrices * vocabulary + (model.hidden_size if stage == last else 0))
    return tuple(counts)
