"""The list of shims that Megatron-Core 0.16 needs on CUDA."""

from __future__ import annotations

import functools
import importlib

from qwen_megatron.platforms.shims.fused_adam import adam_shims
from qwen_megatron.platforms.shims.registry import Shim, apply_shims


def cuda_shims() -> list[Shim]:
    """Those that this installation needs: none where Transformer Engine or NVIDIA apex brings a fused Adam."""
    optimizer = importlib.import_module("megatron.core.optimizer")
    return adam_shims() if optimizer.USING_PYTORCH_OPTIMIZER else []


@functools.cache
def apply_cuda_shims() -> list[str]:
    """Applies the CUDA shims once per process; returns the log lines, the same ones on every call."""
    return apply_shims(cuda_shims())
