"""Choice of the platform by name or by what the machine has."""

from __future__ import annotations

import torch

from qwen_megatron.platforms.base import Platform
from qwen_megatron.platforms.cpu import CpuPlatform
from qwen_megatron.platforms.cuda import CudaPlatform


def get_platform(name: str) -> Platform:
    """The platform for `parallel.platform`.

    Args:
        name: `cpu`, `cuda`, or `auto`: CUDA where torch sees a device, otherwise the CPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return {"cpu": CpuPlatform, "cuda": CudaPlatform}[name]()
