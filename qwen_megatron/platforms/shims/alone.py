"""The shims that let one process play any rank of a job whose other ranks do not exist, on tensors without content."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from qwen_megatron.platforms.shims.registry import Rebind, applied


def gather_own(object_list: list[Any], obj: Any, group: Any = None) -> None:
    """In place of `all_gather_object`: all ranks have what this one has."""
    object_list[:] = [obj] * len(object_list)


def leave_as_it_is(
    module: torch.nn.Module, convert: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True
) -> torch.nn.Module:
    """In place of `Module._apply`, for conversions that change nothing.

    Raises:
        TypeError: if one would.
    """
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if convert(tensor) is not tensor:
            raise TypeError(f"a dry run builds modules as they will be, but {name} would be converted")
    return module


def alone_shims() -> list[Rebind]:
    """Those that a dry run needs."""
    return [
        Rebind(
            target="torch.distributed:all_gather_object",
            reason="objects travel as tensors, which have no content in a dry run; while it lasts",
            until="the optimizer of Megatron-Core compares its groups of parameters without talking",
            library="torch",
            version="2.13",
            replacement=gather_own,
        ),
        Rebind(
            target="torch.nn.modules.module:Module._apply",
            reason="replaces fake tensors by others without the marks of Megatron-Core; while a dry run lasts",
            until="torch leaves alone what a conversion does not change",
            library="torch",
            version="2.13",
            replacement=leave_as_it_is,
        ),
    ]


@contextlib.contextmanager
def without_peers() -> Iterator[None]:
    """While it is open, objects that ranks tell each other are this rank's own, and modules are not converted."""
    with contextlib.ExitStack() as stack:
        for shim in alone_shims():
            stack.enter_context(applied(shim))
        yield
