"""Tells whoever is at work when its thread sends data to other ranks or waits for it.

Megatron-Core times gradient reduction and pipeline transfers itself; collectives inside a layer it does not. On the CPU
they block, so that host time is their time: the shims wrap them. Our own are wrapped where they are called.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any

Enter = Callable[[], AbstractContextManager[None]]


# Of the running thread: the functions that are wrapped are the process's, but each model's step has its own clock, and
# other threads (autograd's on CUDA) are passed over.
LISTENER: ContextVar[Enter] = ContextVar("listener", default=contextlib.nullcontext)


@contextlib.contextmanager
def report_comm_to(enter: Enter) -> Iterator[None]:
    """While it is open, every communication of this thread runs inside `enter()`; may be nested."""
    token = LISTENER.set(enter)
    try:
        yield
    finally:
        LISTENER.reset(token)


def comm_timer() -> AbstractContextManager[None]:
    """Inside, this rank communicates."""
    return LISTENER.get()()


def timed(collective: Callable[..., Any]) -> Callable[..., Any]:
    """`collective`, and the wait for it if it is asynchronous, inside `communicating`."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with comm_timer():
            work = collective(*args, **kwargs)
        return TimedWork(work) if kwargs.get("async_op") and work is not None else work

    return call


class TimedWork:
    """The handle of an asynchronous collective, as far as Megatron-Core's layers use it."""

    def __init__(self, work: Any):
        self.work = work

    def wait(self) -> None:
        """Waits for the collective and counts the time as communication."""
        with comm_timer():
            self.work.wait()
