"""One event loop for all gloo groups of a process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d


@contextlib.contextmanager
def one_event_loop() -> Iterator[None]:
    """While it is open, gloo groups are created on the device of the job's first group.

    Otherwise torch opens a device for every group, whose thread wakes a hundred times a second. Megatron-Core creates
    some fifteen groups: a rank that only waited took 2.7 % of a core, and takes 0.5 % (docs/log.md). Other backends are
    left alone.
    """
    world: Any = dist.group.WORLD
    backend = world._get_backend(torch.device("cpu")) if dist.get_backend() == "gloo" else None
    # With TORCH_DISTRIBUTED_DEBUG=DETAIL groups stand behind a wrapper that does not show its device.
    gloo: Any = dist.ProcessGroupGloo
    if not isinstance(backend, gloo):
        yield
        return
    devices = backend.options._devices

    class OnSharedDevices(dist.ProcessGroupGloo):
        def __init__(self, store: dist.Store, rank: int, size: int, timeout: timedelta) -> None:
            options = gloo._Options()
            options._devices = devices
            options._timeout = timeout
            super().__init__(store, rank, size, options)

    module: Any = distributed_c10d
    module.ProcessGroupGloo = OnSharedDevices
    try:
        yield
    finally:
        module.ProcessGroupGloo = gloo
