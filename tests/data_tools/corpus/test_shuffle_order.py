"""Document order: the published generator, a permutation, spread evenly."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.corpus.shuffle import document_keys, shuffled_order

MASK = 2**64 - 1


def splitmix64(start: int, number: int) -> int:
    """Output `number` of SplitMix64 in plain Python."""
    mixed = (start + (number + 1) * 0x9E3779B97F4A7C15) & MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & MASK
    return mixed ^ (mixed >> 31)


def test_splitmix64_known_values() -> None:
    # First outputs of the reference implementation for seed 1234567.
    assert [splitmix64(1234567, number) for number in range(3)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


@given(st.integers(0, MASK), st.integers(0, 10**6), st.lists(st.integers(0, 2**63), max_size=20))
def test_keys_equal_plain_python(seed: int, file_number: int, offsets: list[int]) -> None:
    keys = document_keys(seed, file_number, np.array(offsets, dtype=np.uint64))
    state = splitmix64(seed, file_number)
    assert keys.tolist() == [splitmix64(state, offset) for offset in offsets]


@given(st.lists(st.integers(0, 3), max_size=50))
def test_order_is_by_key_then_input(keys: list[int]) -> None:
    order = shuffled_order(np.array(keys, dtype=np.uint64))
    assert order.dtype == np.int64
    assert order.tolist() == sorted(range(len(keys)), key=lambda number: (keys[number], number))


@pytest.mark.parametrize("step", [1, 4096, 2**40])
def test_neighbours_are_spread_over_the_corpus(step: int) -> None:
    offsets = np.arange(100_000, dtype=np.uint64) * np.uint64(step)
    order = shuffled_order(document_keys(7, 3, offsets))
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    for part in np.split(places, 10):
        counts = np.histogram(part, bins=10, range=(0, len(order)))[0]
        assert abs(counts - 1000).max() < 150  # Five standard deviations.


def test_seed_and_file_change_the_order() -> None:
    offsets = np.arange(1000, dtype=np.uint64)
    orders = {tuple(shuffled_order(document_keys(*key, offsets)).tolist()) for key in ((1, 0), (2, 0), (1, 1))}
    assert len(orders) == 3
