"""Batch size as a pure function of the samples consumed: one size, or a ramp up to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Consecutive steps of one size.

    Attributes:
        consumed: Samples consumed before its first step.
        batch_size: Samples of each step.
        steps: How many there are.
    """

    consumed: int
    batch_size: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class BatchSizes:
    """Sizes of the steps of a run, in samples over all processes.

    While fewer than `samples` samples are consumed, a step has `start` samples and `increment` more for each equal part
    of `samples` that is used up, as many parts as there are increments from `start` to `full` (Megatron-LM's
    `--rampup-batch-size`, in whole numbers).

    Attributes:
        full: Size after the ramp.
        start: Size of the first step; `full` without a ramp.
        increment: A whole part of `full - start`.
        samples: Length of the ramp; 0 without one.
    """

    full: int
    start: int
    increment: int
    samples: int

    def at(self, consumed: int) -> int:
        """Size of the step that starts after `consumed` samples."""
        if consumed >= self.samples:
            return self.full
        return self.start + self.increment * (consumed * self.rises // self.samples)

    @property
    def rises(self) -> int:
        """Increments from `start` to `full`."""
        return (self.full - self.start) // self.increment

    def stretches(self, consumed: int, total: int) -> Iterator[Stretch]:
        """The steps from `consumed` samples on until `total` or more are consumed; at most one stretch a size."""
        while consumed < total:
            batch_size, end = self.at(consumed), total
            if consumed < self.samples:
                # The first count of samples at which steps are larger.
                rise = consumed * self.rises // self.samples + 1
                end = min(total, -(-rise * self.samples // self.rises))
            steps = -(-(end - consumed) // batch_size)
            yield Stretch(consumed=consumed, batch_size=batch_size, steps=steps)
            consumed += steps * batch_size

    def steps_between(self, consumed: int, total: int) -> int:
        """Steps from `consumed` samples on until `total` or more are consumed."""
        return sum(stretch.steps for stretch in self.stretches(consumed, total))

    def samples_after(self, steps: int, consumed: int = 0) -> int:
        """Samples consumed when `steps` steps are taken from `consumed` samples on."""
        # No step is larger than a full one.
        for stretch in self.stretches(consumed, consumed + steps * self.full):
            taken = min(steps, stretch.steps)
            steps, consumed = steps - taken, stretch.consumed + taken * stretch.batch_size
            if not steps:
                break
        return consumed
