"""Choice of the platform by name or by what the machine has."""

from __future__ import annotations

import torch

from qwen_megatron.errors import PlatformError
from qwen_megatron.platforms.base import Platform
from qwen_megatron.platforms.cpu import CpuPlatform
from qwen_megatron.platforms.cuda import TESTING, CudaPlatform


def get_platform(name: str, backend: str = "auto") -> Platform:
    """The platform for `parallel.platform` and `parallel.backend`.

    Args:
        name: `cpu`, `cuda`, or `auto`: CUDA where torch sees a device, otherwise the CPU.
        backend: `nccl`, `gloo`, `gloo_for_testing`, or `auto`: the platform's own.
    Raises:
        PlatformError: if the platform has no such backend.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        if backend == "gloo":
            raise PlatformError(
                "parallel.backend=gloo: gloo copies every tensor of a GPU through the host; use nccl, or "
                f"{TESTING} to run several ranks on one GPU in a test"
            )
        return CudaPlatform(TESTING if backend == TESTING else "nccl")
    if backend == "nccl":
        raise PlatformError("parallel.backend=nccl: NCCL needs GPUs; use parallel.backend=gloo on the CPU")
    return CpuPlatform()
