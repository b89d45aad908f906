"""A step's micro-batches on their way through the schedule: taken one at a time, when the first forward asks."""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from qwen_megatron.data.batch import Batch
from qwen_megatron.model.attention_context import AttentionContext
from qwen_megatron.parallel.groups import Groups
from qwen_megatron.platforms.transfer import Move

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class StageBatch:
    """A micro-batch as a pipeline stage works on it.

    Attributes:
        batch: This rank's part of the sequences. What the stage looks at is on its device, the rest where it was read.
        context: What the layers get to know of it, on the device; None where there is nothing to know.
    """

    batch: Batch
    context: AttentionContext | None


def on_stage(batch: Batch, context: AttentionContext | None, groups: Groups, move: Move) -> StageBatch:
    """Moves what a rank's stage looks at to its device: tokens to the first, labels, loss mask and extras to the last.

    Args:
        batch, context: Of the host.
        groups: Layout.
        move: Copies a tensor.
    """
    if groups.is_first_stage:
        # Qwen's positions enter in the attention: the model does not look at those of the batch.
        batch = dataclasses.replace(batch, tokens_bs=move(batch.tokens_bs))
    if groups.is_last_stage:
        batch = dataclasses.replace(
            batch,
            labels_bs=move(batch.labels_bs),
            loss_mask_bs=move(batch.loss_mask_bs),
            extras={name: move(tensor) for name, tensor in batch.extras.items()},
        )
    return StageBatch(batch=batch, context=None if context is None else context.moved(move))


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
