"""Tells one listener of the process when its thread sends data to other ranks or waits for it.

Megatron-Core times gradient reduction and pipeline transfers itself; collectives inside a layer it does not. On the CPU
they block, so that host time is their time: the shims wrap them. Our own are wrapped where they are called.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

Enter = Callable[[], AbstractContextManager[None]]


class Listener:
    """Whom to tell; one for the process, because the functions that are wrapped are the process's, too."""

    def __init__(self) -> None:
        self.enter: Enter = contextlib.nullcontext
        self.thread: int | None = None


LISTENER = Listener()
NOTHING = contextlib.nullcontext()


def listen(enter: Enter) -> None:
    """From now on every communication of the calling thread runs inside `enter()`."""
    LISTENER.enter, LISTENER.thread = enter, threading.get_ident()


def communicating() -> AbstractContextManager[None]:
    """Inside, this rank communicates. Other threads than the listening one (autograd's on CUDA) are passed over."""
    return LISTENER.enter() if threading.get_ident() == LISTENER.thread else NOTHING


def timed(collective: Callable[..., Any]) -> Callable[..., Any]:
    """`collective`, and the wait for it if it is asynchronous, inside `communicating`."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with communicating():
            work = collective(*args, **kwargs)
        return TimedWork(work) if kwargs.get("async_op") and work is not None else work

    return call


class TimedWork:
    """The handle of an asynchronous collective, as far as Megatron-Core's layers use it."""

    def __init__(self, work: Any):
        self.work = work

    def wait(self) -> None:
        with communicating():
            self.work.wait()
