"""The keyed permutation: a bijection, another one for every key, the same one for ever."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_megatron.data.pretraining.permutation import KeyedPermutation


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 700), key=st.integers(0, 2**64))
def test_is_a_bijection(size: int, key: int) -> None:
    permutation = KeyedPermutation(size, key)
    assert sorted(map(permutation, range(size))) == list(range(size))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 1023, 1024, 1025])
def test_is_a_bijection_around_powers_of_four(size: int) -> None:
    permutation = KeyedPermutation(size, "boundary")
    assert sorted(map(permutation, range(size))) == list(range(size))


@settings(max_examples=40, deadline=None)
@given(size=st.integers(2**20, 2**60), indices=st.lists(st.integers(0, 2**60), min_size=2, max_size=20, unique=True))
def test_large_sizes_stay_in_range_and_do_not_collide(size: int, indices: list[int]) -> None:
    permutation = KeyedPermutation(size, "large")
    asked = {index % size for index in indices}
    images = {permutation(index) for index in asked}
    assert len(images) == len(asked)
    assert all(0 <= image < size for image in images)


def test_values_never_change() -> None:
    """Golden: a run that goes on after an update must read the samples it would have read."""
    assert [KeyedPermutation(10, "seed", 1)(i) for i in range(10)] == [2, 8, 4, 1, 5, 9, 6, 7, 0, 3]
    large = KeyedPermutation(10**12, 1234, "fingerprint", 3)
    assert [large(i) for i in (0, 1, 10**12 - 1)] == [118537864800, 964642311202, 418497298402]


def test_keys_differ() -> None:
    size = 1000
    orders = {
        key: tuple(map(KeyedPermutation(size, *key), range(size)))
        for key in ((1,), (2,), ("1", 0), (1, 1), (1, "corpus", 0), (1, "corpus", 1), (1, "other", 0))
    }
    assert len(set(orders.values())) == len(orders)
    for first, one in orders.items():
        for second, other in orders.items():
            if first != second:
                # Two random orders agree in one place on average, hardly ever in eight.
                assert sum(a == b for a, b in zip(one, other, strict=True)) < 8


def test_equal_keys_agree_whatever_their_type() -> None:
    assert KeyedPermutation(100, 1, "a")(7) == KeyedPermutation(100, "1", "a")(7)


def test_order_looks_random() -> None:
    """Neither distances of neighbours nor parities keep a pattern that a model could feel."""
    size = 4096
    order = np.array([KeyedPermutation(size, "statistics")(i) for i in range(size)])
    correlation = np.corrcoef(order[:-1], order[1:])[0, 1]
    assert abs(correlation) < 5 / np.sqrt(size)
    quarters = np.bincount(order[: size // 4] // (size // 4), minlength=4)
    assert (np.abs(quarters - size / 16) < 5 * np.sqrt(size / 16)).all()
    assert abs((order[: size // 2] % 2).mean() - 0.5) < 5 * 0.5 / np.sqrt(size // 2)


def test_few_passes_are_needed_even_for_the_worst_size() -> None:
    """One element beyond a power of four leaves three quarters of the network's range outside."""
    size = 4**6 + 1
    permutation = KeyedPermutation(size, "passes")
    passes = 0
    encrypt = permutation.encrypt

    def counting(value: int) -> int:
        nonlocal passes
        passes += 1
        return encrypt(value)

    permutation.encrypt = counting  # type: ignore[method-assign]
    for index in range(size):
        permutation(index)
    assert passes / size == pytest.approx(4.0, abs=0.2)


@pytest.mark.parametrize("size", [0, -1])
def test_empty_permutation_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"permutation of {size} elements"):
        KeyedPermutation(size, 1)


@pytest.mark.parametrize("index", [-1, 10, 11])
def test_index_outside_is_refused(index: int) -> None:
    with pytest.raises(ValueError, match=f"index {index} lies outside of the permutation's 10 elements"):
        KeyedPermutation(10, 1)(index)
