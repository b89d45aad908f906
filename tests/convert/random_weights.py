"""Random weights of any architecture: a source for checkpoints that no training wrote."""

from __future__ import annotations

import dataclasses
import hashlib

import torch

from qwen_megatron.config.sections.model import ModelConfig
from qwen_megatron.convert.name_map import Entry, Format, Part

TINY = ModelConfig(
    num_layers=2,
    hidden_size=32,
    ffn_hidden_size=24,
    num_attention_heads=4,
    num_query_groups=4,
    kv_channels=8,
    vocab_size=67,
    seq_length=32,
    rotary_base=20000.0,
    layernorm_epsilon=1e-5,
)

# As Qwen3 has it: norms of queries and keys, no biases, heads of a size of their own, groups of queries.
TINY3 = dataclasses.replace(TINY, qk_layernorm=True, add_qkv_bias=False, num_query_groups=2, kv_channels=12)
# What the formats differ in.
SHAPES = {
    "plain": TINY,
    "grouped": dataclasses.replace(TINY, num_query_groups=2),
    "wide-heads": dataclasses.replace(TINY, num_query_groups=1, kv_channels=12),
    "tied": dataclasses.replace(TINY, tie_word_embeddings=True, num_layers=3),
    "qwen3": TINY3,
    "qwen3-tied": dataclasses.replace(TINY3, tie_word_embeddings=True),
}


def formats_of(model: ModelConfig) -> list[Format]:
    """The formats that can express a model."""
    if model.qk_layernorm:
        return [Format.QWEN3]
    same_heads = model.num_query_groups == model.num_attention_heads
    same_width = model.num_attention_heads * model.kv_channels == model.hidden_size
    return [Format.QWEN2, *([Format.QWEN1] if same_heads and same_width else [])]


class RandomWeights:
    """A `WeightSource` whose every value is a function of the tensor's key and layer."""

    def __init__(self, model: ModelConfig, dtype: torch.dtype = torch.float32):
        self.model = model
        self.stored = dtype

    def dtype(self, entry: Entry) -> torch.dtype:
        return self.stored

    def read(self, part: Part, rows: slice | None = None) -> torch.Tensor:
        name = f"{part.entry.key} {part.layer}"
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big")
        values = torch.randn(part.entry.shape(self.model), generator=torch.Generator().manual_seed(seed))
        # Norms around 1 and biases of weight: a mistake in either shows.
        values = 1 + 0.3 * values if "norm" in part.entry.key else 0.2 * values
        return values[slice(None) if rows is None else rows].to(self.stored).contiguous()
