"""RMSNorm that works under sequence parallelism."""

from __future__ import annotations

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from qwen_megatron.platforms import activations


class RmsNorm(torch.nn.Module):
    """x / rms(x) * weight, the mean square in fp32 (Zhang and Sennrich 2019, arXiv 1910.07467).

    Under sequence parallelism each rank sees a part of the sequence; the mark on the weight lets Megatron-Core sum its
    gradient over the tensor-parallel group.

    Args:
        config: Megatron's configuration.
        hidden_size: Channels.
        eps: Added to the mean square.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, hidden_sbh: torch.Tensor) -> torch.Tensor:
        """[s, b, h] to [s, b, h], in the input's dtype."""
        if activations.takes(hidden_sbh, self.weight):
            return activations.rms_norm(hidden_sbh, self.weight, self.eps)
        x = hidden_sbh.float()
        x = x * torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + self.eps)
        return x.to(hidden_sbh.dtype) * self.weight
