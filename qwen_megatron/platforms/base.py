"""What a kind of machine must offer; the rest of the engine sees only this."""

from __future__ import annotations

import abc
import contextlib
from typing import Any

import torch

from qwen_megatron.platforms.transfer import Copies


class Platform(abc.ABC):
    """One kind of accelerator: its collectives, its device and its clocks.

    Attributes:
        name: `cpu` or `cuda`, as in `parallel.platform`.
        backend: torch.distributed backend of the tensor collectives.
    """

    name: str
    backend: str

    def configure(
        self, *, tensor_parallel: bool = False, deterministic: bool = False, cuda_graphs: bool = False
    ) -> list[str]:
        """Sets the process up for a configuration, before its device is touched.

        Args:
            tensor_parallel: Products of layers are split over ranks.
            deterministic: The same layout gives the same bits.
            cuda_graphs: Kernels of layers are recorded.
        Returns:
            One line per setting, for the log; none where the machine needs none.
        Raises:
            PlatformError: if what the user has set goes against it.
        """
        return []

    @abc.abstractmethod
    def prepare(self) -> list[str]:
        """Makes Megatron-Core usable on this machine, once per process.

        Returns:
            One line per change made to a loaded library, now or when it is needed, for the log.
        Raises:
            PlatformError: if the machine or an installed version does not fit.
        """

    @abc.abstractmethod
    def device(self, local_rank: int) -> torch.device:
        """The device of a rank, by its number on this machine."""

    def group_options(self, device: torch.device) -> dict[str, Any]:
        """Further arguments of `torch.distributed.init_process_group` for a rank on this device."""
        return {}

    def products(self, dtype: torch.dtype) -> contextlib.AbstractContextManager[object]:
        """A context for forward and backward passes whose matrices are of `dtype`."""
        return contextlib.nullcontext()

    def copies(self, device: torch.device) -> Copies:
        """How micro-batches come to a rank's device."""
        return Copies()

    @abc.abstractmethod
    def synchronize(self) -> None:
        """Waits until all queued work of this rank's device is done; a clock read before it lies."""

    @abc.abstractmethod
    def peak_memory_bytes(self) -> int:
        """Largest memory this rank has held so far, in bytes."""
