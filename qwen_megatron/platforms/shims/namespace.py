"""A copy of the torch namespace for Megatron's modules, with CUDA's names meaning the CPU."""

from __future__ import annotations

import contextlib
from types import ModuleType
from typing import Any

import torch

from qwen_megatron.platforms.comm_timer import timed

# Those that Megatron-Core's layers call by these names.
COLLECTIVES = ("all_reduce", "all_gather", "all_to_all_single", "broadcast", "reduce_scatter")


class NullStream:
    """Stands for a CUDA stream: CPU work is ordered as it is written."""

    def wait_stream(self, stream: NullStream) -> None:
        """Nothing runs beside the caller."""

    def synchronize(self) -> None:
        """Nothing is queued."""


class NullEvent:
    """Stands for a CUDA event."""

    def __init__(self, *args: Any, **kwargs: Any):
        """Takes CUDA's arguments."""

    def record(self, stream: NullStream | None = None) -> None:
        """Work before the call is done."""

    def synchronize(self) -> None:
        """Work before the event is done."""


def overridden(module: ModuleType, **overrides: Any) -> ModuleType:
    """A copy of `module` in which some names have other values; the original is not touched."""
    copy = ModuleType(module.__name__, module.__doc__)
    copy.__dict__.update(module.__dict__)
    # Lazily loaded submodules (torch._dynamo and the like) still come from the original.
    copy.__dict__["__getattr__"] = lambda name: getattr(module, name)
    copy.__dict__.update(overrides)
    return copy


def barrier(group: Any = None, async_op: bool = False, device_ids: Any = None) -> Any:
    """torch.distributed.barrier without `device_ids`, which gloo refuses."""
    return torch.distributed.barrier(group=group, async_op=async_op)


def cpu_torch() -> ModuleType:
    """torch as Megatron's modules see it on the CPU."""
    cuda = overridden(
        torch.cuda,
        current_device=lambda: torch.device("cpu"),
        synchronize=lambda device=None: None,
        empty_cache=lambda: None,
        manual_seed=torch.manual_seed,
        get_rng_state=lambda device=None: torch.get_rng_state(),
        current_stream=lambda device=None: NullStream(),
        default_stream=lambda device=None: NullStream(),
        stream=lambda stream: contextlib.nullcontext(),
        Stream=lambda device=None: NullStream(),
        Event=NullEvent,
    )
    distributed = overridden(
        torch.distributed, barrier=barrier, **{name: timed(getattr(torch.distributed, name)) for name in COLLECTIVES}
    )
    return overridden(torch, cuda=cuda, distributed=distributed)
