"""Random weights of any architecture: a source for checkpoints that no training wrote."""

from __future__ import annotations

import hashlib

import torch

from qwen_megatron.config.sections.model import ModelConfig
from qwen_megatron.convert.name_map import Entry, Part

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
