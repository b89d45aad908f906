"""NVIDIA GPUs with NCCL. Not yet run on a GPU by the authors: see the README."""

from __future__ import annotations

import torch

from qwen_megatron.errors import PlatformError
from qwen_megatron.platforms.base import Platform
from qwen_megatron.platforms.shims.later import later_lines


class CudaPlatform(Platform):
    """NCCL collectives; Megatron-Core runs unchanged, but for the reader of checkpoints."""

    name = "cuda"
    backend = "nccl"

    def prepare(self) -> list[str]:
        if not torch.cuda.is_available():
            raise PlatformError(
                "parallel.platform=cuda: torch sees no CUDA device; "
                "use parallel.platform=cpu, or install a CUDA build of torch on a machine with a GPU"
            )
        return later_lines(self.backend)

    def device(self, local_rank: int) -> torch.device:
        count = torch.cuda.device_count()
        if local_rank >= count:
            raise PlatformError(
                f"local rank {local_rank} has no GPU: this machine has {count}; "
                f"start torchrun with --nproc-per-node {count} or fewer"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
        return device

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def peak_memory_bytes(self) -> int:
        return torch.cuda.max_memory_allocated()
