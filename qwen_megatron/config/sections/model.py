"""Section `model`: the architecture."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Interval

from data_tools.settings.records import record

# Names of settings: the shape of the weights.
SHAPE = (
    "num_layers",
    "hidden_size",
    "ffn_hidden_size",
    "num_attention_heads",
    "num_query_groups",
    "kv_channels",
    "vocab_size",
    "tie_word_embeddings",
    "qk_layernorm",
    "add_qkv_bias",
)
# What stretches the context in evaluation; only the format of the first Qwen series has a place for it.
STRETCHES = ("use_dynamic_ntk", "use_logn_attn")


@record
class ModelConfig:
    """A Qwen architecture."""

    num_layers: Annotated[int, Interval(ge=1, le=10_000)]
    """Transformer layers."""
    hidden_size: Annotated[int, Interval(ge=1, le=1 << 20)]
    """Width of the residual stream."""
    ffn_hidden_size: Annotated[int, Interval(ge=1, le=1 << 22)]
    """Width of each of the two branches of the SwiGLU feed-forward layer (half of `intermediate_size` in the files
    of the first Qwen series)."""
    num_attention_heads: Annotated[int, Interval(ge=1, le=1 << 16)]
    """Query heads."""
    num_query_groups: Annotated[int, Interval(ge=1, le=1 << 16)]
    """Key and value heads. Default: `num_attention_heads`, plain multi-head attention."""
    kv_channels: Annotated[int, Interval(ge=1, le=1 << 16)]
    """Size of one head; even, because rotary embedding turns pairs. Default: `hidden_size /
    num_attention_heads`."""
    vocab_size: Annotated[int, Interval(ge=1, le=1 << 31)]
    """Rows of the embedding and of the output layer in the Hugging Face file; all of them are exported. Rows added
    for the tensor-parallel layout are not counted."""
    seq_length: Annotated[int, Interval(ge=2, le=1 << 32)]
    """Native context in tokens: LogN scaling and dynamic NTK act beyond it. The context trained on is
    `training.seq_length`."""
    rotary_base: Annotated[float, Interval(gt=1.0, le=1e15)] = 10000.0
    """Base of the rotary embedding."""
    use_dynamic_ntk: bool = False
    """Stretch the rotary base for inputs beyond `seq_length`; evaluation only."""
    use_logn_attn: bool = False
    """Scale queries beyond `seq_length` by log(position) / log(seq_length); evaluation only."""
    layernorm_epsilon: Annotated[float, Interval(gt=0.0, le=1.0)] = 1e-06
    """Added to the mean square in RMSNorm."""
    tie_word_embeddings: bool = False
    """Use the embedding matrix as the output layer too (Qwen 0.5B)."""
    qk_layernorm: bool = False
    """Normalise each head of queries and keys (RMSNorm over `kv_channels`) before they are rotated, as Qwen3 does."""
    add_qkv_bias: bool = True
    """Biases on queries, keys and values; Qwen3 has none."""
    init_method_std: Annotated[float, Interval(ge=0.0, le=10.0)] = 0.02
    """Standard deviation of the initial weights; output projections of attention and feed-forward layer use it
    divided by sqrt(2 num_layers)."""
    hidden_dropout: Annotated[float, Interval(ge=0.0, lt=1.0)] = 0.0
    """Dropout of the embedding and of the outputs of attention and feed-forward layer."""
    attention_dropout: Annotated[float, Interval(ge=0.0, lt=1.0)] = 0.0
    """Dropout of attention probabilities."""
    implementation: Literal["auto", "transformer_engine", "torch"] = "auto"
    """Kernels of the layers; `auto` takes Transformer Engine where it imports and a CUDA device is there, torch
    otherwise."""
    loss_implementation: Literal["auto", "fused", "unfused"] = "auto"
    """`fused` computes output layer, loss and their gradients together, a few hundred tokens at a time, and never
    holds the logits of a micro-batch; `unfused` holds them; `auto` is `fused`."""
