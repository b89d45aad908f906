"""The list of shims that Megatron-Core 0.16 needs on CUDA."""

from __future__ import annotations

import functools
import importlib

from qwen_megatron.platforms.shims.fused_adam import adam_shims
from qwen_megatron.platforms.shims.registry import Rebind, Shim, apply_shims


def cuda_shims() -> list[Shim]:
    """Those that this installation needs.

    Without Transformer Engine and NVIDIA apex a fused Adam; with Transformer Engine alone, leave to have its linears
    add the gradients of their weights to the fp32 buffer.
    """
    optimizer = importlib.import_module("megatron.core.optimizer")
    layers = importlib.import_module("megatron.core.tensor_parallel.layers")
    engine = importlib.import_module("megatron.core.extensions.transformer_engine")
    shims: list[Shim] = adam_shims() if optimizer.USING_PYTORCH_OPTIMIZER else []
    if engine.HAVE_TE and not layers._grad_accum_fusion_available:
        shims.append(
            Rebind(
                target="megatron.core.tensor_parallel.layers:_grad_accum_fusion_available",
                reason="Transformer Engine's linears need no apex for it, but the output layer's constructor refuses",
                until="Megatron-Core asks for apex where it is used",
                replacement=True,
            )
        )
    return shims


@functools.cache
def apply_cuda_shims() -> list[str]:
    """Applies the CUDA shims once per process; returns the log lines, the same ones on every call."""
    return apply_shims(cuda_shims())
