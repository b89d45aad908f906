"""A step's micro-batches on their way through the schedule: taken one at a time, when the first forward asks."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

from qwen_megatron.data.batch import Batch

T = TypeVar("T")


class StepBatches:
    """The micro-batches of one step, to be gone through once, or more often if they are kept.

    They are kept, not read again: what a step that is run again computes on must be what it computed on before, not
    what a file says by then; and 28 bytes a token of one step are little beside a layer's activations.

    Args:
        batches: Where they come from; exactly a step's worth is taken.
        count: Micro-batches of the step.
        keeps: Whether they may be gone through again.
    """

    def __init__(self, batches: Iterator[Batch], count: int, *, keeps: bool):
        self.batches = itertools.islice(batches, count)
        self.count = count
        self.keeps = keeps
        self.passes = 0
        self.kept: list[Batch] = []

    def __iter__(self) -> Iterator[Batch]:
        """Raises:
        RuntimeError: the second time, if they are not kept.
        """
        if self.passes and not self.keeps:
            raise RuntimeError("the micro-batches of this step were not kept; say that they are needed again")
        self.passes += 1
        return iter(self.kept) if self.passes > 1 else self.first_pass()

    def first_pass(self) -> Iterator[Batch]:
        """Hands out the micro-batches as they are read, and keeps them if they may be asked for again."""
        for batch in self.batches:
            if self.keeps:
                self.kept.append(batch)
            yield batch


def fanned_out(items: Iterable[T], number: int) -> list[Iterator[T]]:
    """Iterators over the same items, each at its own pace; an item is taken when the first asks for it.

    It is held until the last has had it: for the chunks of an interleaved pipeline as long as the first is ahead of the
    last. (`itertools.tee` holds up to 57 more.)
    """
    source = iter(items)
    waiting: list[deque[T]] = [deque() for _ in range(number)]

    def one(own: deque[T]) -> Iterator[T]:
        while True:
            if not own:
                try:
                    item = next(source)
                except StopIteration:
                    return
                for queue in waiting:
                    queue.append(item)
            yield own.popleft()

    return [one(queue) for queue in waiting]
