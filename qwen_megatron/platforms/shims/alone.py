"""The shim that lets one process play any rank of a job whose other ranks do not exist."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from qwen_megatron.platforms.shims.registry import Rebind, applied


def gather_own(object_list: list[Any], obj: Any, group: Any = None) -> None:
    """In place of `all_gather_object`: all ranks have what this one has."""
    object_list[:] = [obj] * len(object_list)


def alone_shim() -> Rebind:
    """Objects are not sent: the bytes of tensors without content cannot be read back."""
    return Rebind(
        target="torch.distributed:all_gather_object",
        reason="objects travel as tensors, which have no content in a dry run; while it lasts",
        until="the optimizer of Megatron-Core compares its groups of parameters without talking",
        library="torch",
        version="2.13",
        replacement=gather_own,
    )


@contextlib.contextmanager
def without_peers() -> Iterator[None]:
    """While it is open, objects that ranks tell each other are this rank's own."""
    with applied(alone_shim()):
        yield
