"""The straggler report: the answers of its definition, at a cost that thousands of ranks can bear."""

from __future__ import annotations

import math
import random
import statistics
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_megatron.train.hooks.straggler import FACTOR, LEAST_SHARE, stragglers


def by_definition(ranks: list[list[float]]) -> list[str]:
    """Each rank against the lower median of all others of its stage, found anew for each."""
    lines = []
    for rank, (worked, step, stage) in enumerate(ranks):
        peers = [other[0] for number, other in enumerate(ranks) if other[2] == stage and number != rank]
        if not peers:
            continue
        usual = statistics.median_low(peers)
        if worked > FACTOR * usual and worked - usual > LEAST_SHARE * step:
            lines.append(
                f"rank {rank} is a straggler: {worked:.3f} s of its own work a step, its peers {usual:.3f} s, "
                f"of {step:.3f} s"
            )
    return lines


# Few values, so that ranks are equal; and any.
SECONDS = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.5, 2.0]), st.floats(0, 10))
RANKS = st.lists(st.tuples(SECONDS, SECONDS, st.integers(0, 3)).map(lambda row: [*map(float, row)]), max_size=24)


@settings(max_examples=500, deadline=None)
@given(RANKS)
def test_answers_are_those_of_the_definition(ranks: list[list[float]]) -> None:
    assert stragglers(ranks) == by_definition(ranks)


class Counted(float):
    """A number that counts how often it is compared."""

    comparisons = 0

    def __lt__(self, other: float) -> bool:
        Counted.comparisons += 1
        return float(self) < float(other)

    def __le__(self, other: float) -> bool:
        Counted.comparisons += 1
        return float(self) <= float(other)

    def __gt__(self, other: float) -> bool:
        Counted.comparisons += 1
        return float(self) > float(other)


def seconds_of(num_ranks: int, num_stages: int) -> list[list[float]]:
    """A job whose ranks differ a little, and one of a hundred very much."""
    drawn = random.Random(1)
    return [
        [drawn.gauss(1.0, 0.01) * (2 if rank % 100 == 7 else 1), 2.5, float(rank * num_stages // num_ranks)]
        for rank in range(num_ranks)
    ]


def test_comparisons_grow_like_n_log_n() -> None:
    for num_ranks in (8, 64, 512, 4096, 8192):
        ranks = [[Counted(worked), step, stage] for worked, step, stage in seconds_of(num_ranks, 4)]
        Counted.comparisons = 0
        lines = stragglers(ranks)
        assert len(lines) == len(range(7, num_ranks, 100))
        assert Counted.comparisons <= num_ranks * (math.log2(num_ranks) + 3)


def test_thousands_of_ranks_are_compared_at_once() -> None:
    """Some milliseconds; by the definition it is many seconds."""
    ranks = seconds_of(8192, 4)
    started = time.perf_counter()
    stragglers(ranks)
    assert time.perf_counter() - started < 1.0
