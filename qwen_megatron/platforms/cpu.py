"""CPU with gloo: every layout runs on a laptop, with torch kernels."""

from __future__ import annotations

import resource
import sys

import torch

from qwen_megatron.platforms.base import Platform
from qwen_megatron.platforms.shims.cpu import apply_cpu_shims


class CpuPlatform(Platform):
    """gloo collectives, torch kernels; Megatron-Core's CUDA names are redirected by the shims."""

    name = "cpu"
    backend = "gloo"

    def prepare(self) -> list[str]:
        return apply_cpu_shims()

    def device(self, local_rank: int) -> torch.device:
        return torch.device("cpu")

    def synchronize(self) -> None:
        """CPU operations are done when they return."""

    def peak_memory_bytes(self) -> int:
        # Linux reports the peak resident set in KiB, macOS in bytes.
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
