"""Blending: exact shares, every sample located alone, no stretch of a run far from the shares."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_megatron.data.pretraining.blending import CYCLE, STEP, Blend, floor_sum, largest_remainder

WEIGHTS = [
    [1.0],
    [1.0, 1.0],
    [0.7, 0.2, 0.1],
    [3.0, 1e-9, 5.0, 2.0],
    [float(number) for number in range(1, 41)],
]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_quotas_are_exact(weights: list[float]) -> None:
    blend = Blend(weights)
    assert sum(blend.quotas) == CYCLE
    assert blend.consumed(CYCLE) == blend.quotas
    assert blend.consumed(3 * CYCLE) == [3 * quota for quota in blend.quotas]
    for quota, weight in zip(blend.quotas, weights, strict=True):
        assert quota >= 1
        # Within one sample of the share, and one more for each corpus lifted to its one sample.
        assert abs(quota - CYCLE * weight / math.fsum(weights)) <= 2


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("start", [0, CYCLE - 700, 5 * CYCLE - 300, 10**15])
def test_locate_and_consumed_agree_with_counting(weights: list[float], start: int) -> None:
    blend = Blend(weights)
    counts = blend.consumed(start)
    assert sum(counts) == start
    for sample in range(start, start + 1000):
        corpus, before = blend.locate(sample)
        assert before == counts[corpus]
        counts[corpus] += 1
    assert blend.consumed(start + 1000) == counts


@settings(max_examples=30, deadline=None)
@given(
    weights=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=12),
    samples=st.lists(st.integers(0, 10**13), min_size=1, max_size=5),
)
def test_any_sample_is_located_alone(weights: list[float], samples: list[int]) -> None:
    blend = Blend(weights)
    for sample in samples:
        corpus, before = blend.locate(sample)
        first, after = blend.consumed(sample), blend.consumed(sample + 1)
        assert first[corpus] == before
        assert [new - old for new, old in zip(after, first, strict=True)] == [
            int(i == corpus) for i in range(len(weights))
        ]


def test_locate_walks_the_cycle_as_written() -> None:
    """The same assignment by brute force: position of the walk, interval of the quotas."""
    blend = Blend([0.6, 0.3, 0.1])
    positions = (np.arange(CYCLE, dtype=np.int64) * STEP) % CYCLE
    assert len(np.unique(positions)) == CYCLE
    corpora = np.searchsorted(np.cumsum(blend.quotas), positions, side="right")
    for sample in (0, 1, 2, 1000, CYCLE // 2, CYCLE - 1):
        assert blend.locate(sample)[0] == corpora[sample]
        assert blend.locate(7 * CYCLE + sample)[0] == corpora[sample]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_every_prefix_is_near_the_shares(weights: list[float]) -> None:
    """Not six samples off at any point of a run: a random order would be off by hundreds."""
    blend = Blend(weights)
    positions = (np.arange(CYCLE, dtype=np.int64) * STEP) % CYCLE
    corpora = np.searchsorted(np.cumsum(blend.quotas), positions, side="right")
    taken = np.arange(1, CYCLE + 1)
    for corpus, quota in enumerate(blend.quotas):
        counts = np.cumsum(corpora == corpus)
        assert np.abs(counts - taken * (quota / CYCLE)).max() < 6


def test_scale_of_the_weights_does_not_matter() -> None:
    assert Blend([0.25, 0.5, 1.0]).quotas == Blend([25e9, 50e9, 100e9]).quotas


@given(count=st.integers(0, 60), modulus=st.integers(1, 50), step=st.integers(0, 120), offset=st.integers(0, 120))
def test_floor_sum_is_the_sum(count: int, modulus: int, step: int, offset: int) -> None:
    assert floor_sum(count, modulus, step, offset) == sum((step * n + offset) // modulus for n in range(count))


@given(weights=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20), spare=st.integers(0, 1000))
def test_largest_remainder_adds_up(weights: list[float], spare: int) -> None:
    total = len(weights) + spare
    counts = largest_remainder(weights, total)
    assert sum(counts) == total
    assert min(counts) >= 1
    # A heavier corpus never gets less.
    order = sorted(range(len(weights)), key=lambda i: weights[i])
    assert all(counts[a] <= counts[b] + (weights[a] == weights[b]) for a, b in pairwise(order))


def test_largest_remainder_of_known_shares() -> None:
    assert largest_remainder([0.5, 0.3, 0.2], 10) == [5, 3, 2]
    assert largest_remainder([1, 1, 1], 4) == [2, 1, 1]
    assert largest_remainder([1, 1, 1], 5) == [2, 2, 1]
    assert largest_remainder([1e-9, 1.0], 10) == [1, 9]
    assert largest_remainder([1e-9, 1e-9, 1.0], 3) == [1, 1, 1]
    assert largest_remainder([0.5], 1) == [1]


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_bad_weight_is_named(weight: float) -> None:
    with pytest.raises(ValueError, match=r"positive and finite, got \[" + str(weight)):
        Blend([1.0, weight])


def test_no_weights_and_too_many_are_refused() -> None:
    with pytest.raises(ValueError, match="0 weights cannot share"):
        Blend([])
    with pytest.raises(ValueError, match="3 weights cannot share 2 samples"):
        largest_remainder([1.0, 1.0, 1.0], 2)
