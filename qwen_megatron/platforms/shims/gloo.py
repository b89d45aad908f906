"""The shim that gives all gloo groups of a process one event loop; torch has it only while groups are created."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from qwen_megatron.platforms.shims.registry import Rebind, applied


def gloo_shim(group_class: Any) -> Rebind:
    """Lets torch create gloo groups through `group_class(store, rank, size, timeout)`."""
    return Rebind(
        target="torch.distributed.distributed_c10d:ProcessGroupGloo",
        reason="each group opens an event loop of its own; while groups are created",
        until="torch.distributed.new_group takes the devices of gloo",
        library="torch",
        version="2.13",
        replacement=group_class,
    )


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

    with applied(gloo_shim(OnSharedDevices)):
        yield
