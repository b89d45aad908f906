"""Which corpus each sample of a blend comes from: exact shares, computed for any sample alone.

A cycle of `CYCLE` samples holds each corpus exactly `quota` times. Inside a cycle the corpora are interleaved by a
golden-ratio walk: n-th sample -> point (n * step) mod CYCLE, corpus = the interval of quotas it falls in. It visits
every point once a cycle (the shares are exact) and is evenly spread (every stretch of a run has nearly the shares).
How many samples a corpus gave before n is a sum of floors, in O(log CYCLE).
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence

CYCLE = 1 << 20
# Odd, so coprime to CYCLE, and the closest such to CYCLE / golden ratio.
STEP = 648055


class Blend:
    """Assigns sample numbers to corpora.

    Args:
        weights: Positive finite weights, any scale. A corpus with a weight gets at least one sample a cycle.
    Attributes:
        quotas: Samples of each corpus in a cycle of `CYCLE`.
    """

    def __init__(self, weights: Sequence[float]):
        self.quotas = largest_remainder(weights, CYCLE)
        self.bounds = [0, *itertools.accumulate(self.quotas)]

    def locate(self, sample: int) -> tuple[int, int]:
        """Corpus of a sample, and how many samples that corpus gave before it."""
        cycle, position = divmod(sample, CYCLE)
        corpus = bisect.bisect_right(self.bounds, position * STEP % CYCLE) - 1
        return corpus, cycle * self.quotas[corpus] + self.count(corpus, position)

    def consumed(self, samples: int) -> list[int]:
        """How many of the first `samples` samples each corpus gave: the cursor."""
        cycle, position = divmod(samples, CYCLE)
        return [cycle * quota + self.count(corpus, position) for corpus, quota in enumerate(self.quotas)]

    def count(self, corpus: int, position: int) -> int:
        """Points of `corpus` among the first `position` of a cycle."""
        low, high = self.bounds[corpus], self.bounds[corpus + 1]
        # [low <= x mod M < high] = floor((x - low) / M) - floor((x - high) / M), summed over x = STEP * n.
        shift = CYCLE  # keeps the offsets of the floors positive; both sums gain the same
        return floor_sum(position, CYCLE, STEP, shift - low) - floor_sum(position, CYCLE, STEP, shift - high)


def floor_sum(count: int, modulus: int, step: int, offset: int) -> int:
    """Sum of floor((step * n + offset) / modulus) for n < count, all arguments non-negative; Euclid's algorithm."""
    total = 0
    while count > 0:
        total += (count - 1) * count // 2 * (step // modulus) + count * (offset // modulus)
        step, offset = step % modulus, offset % modulus
        last = step * count + offset
        if last < modulus:
            break
        count, offset = divmod(last, modulus)
        step, modulus = modulus, step
    return total


def largest_remainder(weights: Sequence[float], total: int) -> list[int]:
    """Whole numbers with the given sum, as near to the weights' shares as possible, at least 1 each.

    Raises:
        ValueError: if there are no weights or more than `total`, or one is not positive and finite.
    """
    if not 1 <= len(weights) <= total:
        raise ValueError(f"{len(weights)} weights cannot share {total} samples")
    bad = [weight for weight in weights if not (math.isfinite(weight) and weight > 0)]
    if bad:
        raise ValueError(f"blend weights must be positive and finite, got {bad}")
    scale = total / math.fsum(weights)
    exact = [weight * scale for weight in weights]
    counts = [max(1, math.floor(share)) for share in exact]
    # Ties go to the earlier corpus, so that the result depends on nothing but the weights.
    by_need = sorted(range(len(weights)), key=lambda i: (counts[i] - exact[i], i))
    for i in itertools.islice(itertools.cycle(by_need), max(0, total - sum(counts))):
        counts[i] += 1
    while sum(counts) > total:
        counts[max(range(len(counts)), key=lambda i: (counts[i] - exact[i] if counts[i] > 1 else -math.inf, i))] -= 1
    return counts
