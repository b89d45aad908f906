"""Buffers through which tensor-parallel ranks send while their products run: Transformer Engine's user buffers.

They belong to the process, for one size of micro-batch, and must be there before layers are built.
"""

from __future__ import annotations

import functools
import importlib

import torch

from qwen_megatron.errors import PlatformError


@functools.cache
def start_user_buffers(
    tokens: int, hidden_size: int, tensor_size: int, dtype: torch.dtype, *, fp8: bool, outer_layers_bf16: bool
) -> None:
    """Makes them; again only for another size, which Transformer Engine refuses. Collective over the job.

    Args:
        tokens: Of a micro-batch on a context-parallel rank, over all tensor-parallel ranks.
        hidden_size: h.
        tensor_size: Tensor-parallel ranks, all on one machine.
        dtype: Of activations.
        fp8: Products of the layers are in FP8.
        outer_layers_bf16: But for the first and the last layer.
    Raises:
        PlatformError: if these GPUs cannot.
    """
    base = importlib.import_module("transformer_engine.pytorch.module.base")
    modes = [base.UserBufferQuantizationMode.FP8 if fp8 else base.UserBufferQuantizationMode.NONE]
    if fp8 and outer_layers_bf16:
        modes.append(base.UserBufferQuantizationMode.NONE)
    try:
        base.initialize_ub(
            shape=[tokens, hidden_size],
            tp_size=tensor_size,
            quantization_modes=modes,
            dtype=dtype,
            bootstrap_backend="nccl",
        )
    except (AssertionError, RuntimeError) as error:
        raise PlatformError(
            f"parallel.tp_comm_overlap: Transformer Engine makes no buffers for it here ({error}); it needs the "
            "tensor-parallel GPUs in one machine, joined by NVLink; use false"
        ) from error
