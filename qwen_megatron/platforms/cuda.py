"""NVIDIA GPUs with NCCL. What has run on one, and what has not: docs/gpu.md."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from qwen_megatron.errors import PlatformError
from qwen_megatron.platforms.base import Platform
from qwen_megatron.platforms.environment import cuda_variables, set_variables
from qwen_megatron.platforms.shims.cuda import apply_cuda_shims
from qwen_megatron.platforms.shims.later import later_lines
from qwen_megatron.platforms.staged_gloo import register
from qwen_megatron.platforms.transfer import Copies, CopiesAhead, to_device

# Slow, and only asked for by its full name: the name in `parallel.backend` and torch's.
TESTING = "gloo_for_testing"


class CudaPlatform(Platform):
    """NCCL collectives; Megatron-Core runs unchanged, but for the reader of checkpoints and torch's AdamW.

    Args:
        backend: `nccl`, or `gloo_for_testing`, with which several ranks may share a GPU.
    """

    name = "cuda"

    def __init__(self, backend: str = "nccl"):
        self.backend = backend

    def configure(
        self, *, tensor_parallel: bool = False, deterministic: bool = False, cuda_graphs: bool = False
    ) -> list[str]:
        variables = cuda_variables(
            tensor_parallel=tensor_parallel, deterministic=deterministic, cuda_graphs=cuda_graphs
        )
        if torch.cuda.is_initialized() and variables:
            raise PlatformError(
                f"CUDA runs already, and would not look at {', '.join(variable.name for variable in variables)} any "
                "more; configure the platform before anything touches a GPU"
            )
        lines = set_variables(variables)
        if deterministic:
            torch.use_deterministic_algorithms(True)
            # Memory that is about to be overwritten need not be filled for it.
            torch._C._set_deterministic_fill_uninitialized_memory(False)
            lines.append("torch takes deterministic algorithms only, and refuses what has none")
        return lines

    def prepare(self) -> list[str]:
        if not torch.cuda.is_available():
            raise PlatformError(
                "parallel.platform=cuda: torch sees no CUDA device; "
                "use parallel.platform=cpu, or install a CUDA build of torch on a machine with a GPU"
            )
        if self.backend == TESTING:
            register(TESTING)
        return [*apply_cuda_shims(), *later_lines(self.backend)]

    def device(self, local_rank: int) -> torch.device:
        count = torch.cuda.device_count()
        if self.backend == TESTING and count:
            # Ranks share what is there.
            local_rank %= count
        if local_rank >= count:
            raise PlatformError(
                f"local rank {local_rank} has no GPU: this machine has {count}; "
                f"start torchrun with --nproc-per-node {count} or fewer"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
        return device

    def group_options(self, device: torch.device) -> dict[str, Any]:
        # Otherwise NCCL guesses the device from the rank, and connects in the first collective.
        return {"device_id": device} if self.backend == "nccl" else {}

    def copies(self, device: torch.device) -> Copies:
        return CopiesAhead(CudaStreams(device))

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def peak_memory_bytes(self) -> int:
        return torch.cuda.max_memory_allocated()


class CudaStreams:
    """The stream that computes and one beside it.

    Args:
        device: A GPU.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.side = torch.cuda.Stream(device)

    def beside(self) -> contextlib.AbstractContextManager[Any]:
        """See `Streams`."""
        return torch.cuda.stream(self.side)

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """See `Streams`; from pinned memory."""
        return to_device(tensor, self.device)

    def mark(self) -> torch.cuda.Event:
        """See `Streams`."""
        return self.side.record_event()

    def wait(self, mark: torch.cuda.Event) -> None:
        """See `Streams`."""
        torch.cuda.current_stream(self.device).wait_event(mark)

    def keep(self, tensor: torch.Tensor) -> None:
        """See `Streams`."""
        tensor.record_stream(torch.cuda.current_stream(self.device))
