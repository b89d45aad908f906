"""Copies from the host to a device that neither the host nor the device's other work waits for."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import torch

Item = TypeVar("Item")
Made = TypeVar("Made")
Move = Callable[[torch.Tensor], torch.Tensor]


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on a device; on a GPU the copy is queued, from pinned memory that torch keeps until it is done."""
    if device.type == "cpu" or not tensor.is_cpu:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Copies:
    """How a rank's micro-batches come to its device: on the CPU they are there.

    Attributes:
        ahead: Micro-batches whose copies begin before the one in work is handed out.
    """

    ahead = 0

    def begin(self, make: Callable[[Move], Made]) -> Callable[[], Made]:
        """Has something made of copies.

        Args:
            make: Gets a function that copies a tensor; may not look at what that returns.
        Returns:
            A function that hands the result out, to be used from then on by the work that is queued next.
        """
        made = make(lambda tensor: tensor)
        return lambda: made


class Streams(Protocol):
    """A device's queue of computations, and another one beside it."""

    def beside(self) -> contextlib.AbstractContextManager[Any]:
        """While it is open, work is queued beside the computations."""

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """Queues a copy of a tensor of the host; the host does not wait."""

    def mark(self) -> Any:
        """Marks the end of what is queued beside."""

    def wait(self, mark: Any) -> None:
        """Computations that are queued from now on wait for a mark; the host does not."""

    def keep(self, tensor: torch.Tensor) -> None:
        """The memory of a copy stays its own until the computations queued so far are done with it."""


class CopiesAhead(Copies):
    """Copies beside the computations: while a micro-batch is computed, the next one comes.

    Args:
        streams: Of the device.
    """

    ahead = 1

    def __init__(self, streams: Streams):
        self.streams = streams

    def begin(self, make: Callable[[Move], Made]) -> Callable[[], Made]:
        """Queues the copies now; what uses them is held back only from when the result is handed out."""
        copies: list[torch.Tensor] = []

        def move(tensor: torch.Tensor) -> torch.Tensor:
            if not tensor.is_cpu:
                return tensor
            copies.append(self.streams.copy(tensor))
            return copies[-1]

        with self.streams.beside():
            made = make(move)
            mark = self.streams.mark()

        def hand_out() -> Made:
            self.streams.wait(mark)
            for copy in copies:
                self.streams.keep(copy)
            return made

        return hand_out


def begun_ahead(items: Iterator[Item], begin: Callable[[Item], Callable[[], Made]], ahead: int) -> Iterator[Made]:
    """What is made of each item, in their order, begun `ahead` items before it is handed out."""
    begun: deque[Callable[[], Made]] = deque()
    for item in items:
        begun.append(begin(item))
        del item
        if len(begun) > ahead:
            yield begun.popleft()()
    while begun:
        yield begun.popleft()()
