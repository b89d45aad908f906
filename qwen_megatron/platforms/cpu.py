"""CPU with gloo: every layout runs on a laptop, with torch kernels."""

from __future__ import annotations

import contextlib
import resource
import sys

import torch

from qwen_megatron.platforms.base import Platform
from qwen_megatron.platforms.bf16_emulation import Bf16Emulation, multiplies_bf16
from qwen_megatron.platforms.shims.cpu import apply_cpu_shims
from qwen_megatron.platforms.shims.later import later_lines


class CpuPlatform(Platform):
    """gloo collectives, torch kernels; Megatron-Core's CUDA names are redirected by the shims."""

    name = "cpu"
    backend = "gloo"

    def prepare(self) -> list[str]:
        return [*apply_cpu_shims(), *later_lines(self.backend)]

    def device(self, local_rank: int) -> torch.device:
        return torch.device("cpu")

    def products(self, dtype: torch.dtype) -> contextlib.AbstractContextManager[object]:
        if dtype != torch.bfloat16 or multiplies_bf16():
            return contextlib.nullcontext()
        return Bf16Emulation()

    def synchronize(self) -> None:
        """CPU operations are done when they return."""

    def peak_memory_bytes(self) -> int:
        # Linux reports the peak resident set in KiB, macOS in bytes.
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
