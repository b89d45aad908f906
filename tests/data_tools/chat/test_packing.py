"""Packing and truncation: properties over random input."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.chat.packing import first_fit_decreasing
from data_tools.chat.rendered import Rendered, rendered
from data_tools.chat.truncation import truncate, turn_starts

START, END, LINE = 1, 2, 3
LENGTHS = st.integers(1, 40).flatmap(
    lambda capacity: st.tuples(st.just(capacity), st.lists(st.integers(1, capacity), max_size=60))
)


def slow_first_fit_decreasing(lengths: list[int], capacity: int) -> list[list[int]]:
    rows: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda one: (-lengths[one], one)):
        for row in rows:
            if sum(lengths[one] for one in row) + lengths[index] <= capacity:
                row.append(index)
                break
        else:
            rows.append([index])
    return rows


@settings(max_examples=60, deadline=None)
@given(LENGTHS)
def test_each_sample_is_in_one_row_and_no_row_is_too_full(case: tuple[int, list[int]]) -> None:
    capacity, lengths = case
    rows = first_fit_decreasing(lengths, capacity)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= capacity for row in rows)
    assert rows == slow_first_fit_decreasing(lengths, capacity)
    # No two rows could be one, which a bound of the optimum follows from.
    fill = sorted(sum(lengths[index] for index in row) for row in rows)
    assert len(fill) < 2 or fill[0] + fill[1] > capacity


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(20, 200))
def test_at_most_eleven_ninths_of_the_least_number_of_rows(seed: int, num_rows: int, capacity: int) -> None:
    """Rows that are cut into pieces without a rest: the optimum is known."""
    random = np.random.default_rng(seed)
    lengths: list[int] = []
    for _ in range(num_rows):
        cuts = np.unique(np.append(random.integers(1, capacity, size=random.integers(1, 6)), [0, capacity]))
        lengths += np.diff(cuts).tolist()
    random.shuffle(lengths)
    assert len(first_fit_decreasing(lengths, capacity)) <= 11 / 9 * num_rows + 6 / 9


def test_the_order_of_equal_lengths_is_that_of_the_input() -> None:
    assert first_fit_decreasing([5, 3, 3, 2, 7, 1], 8) == [[4, 5], [0, 1], [2, 3]]
    assert first_fit_decreasing(np.array([4, 4, 4], dtype=np.int32), 4) == [[0], [1], [2]]
    assert first_fit_decreasing([], 8) == []


@pytest.mark.parametrize(("lengths", "bad"), [([3, 9], "length 9 of sample 1"), ([0], "length 0 of sample 0")])
def test_a_sample_must_fit(lengths: list[int], bad: str) -> None:
    with pytest.raises(ValueError, match=f"{bad} must be 1 to the capacity 8"):
        first_fit_decreasing(lengths, 8)


def test_time_does_not_grow_with_the_rows() -> None:
    """Looking at every row for each of 20,000 samples would take minutes."""
    lengths = np.random.default_rng(1).integers(600, 2048, size=20_000)
    began = time.process_time()
    rows = first_fit_decreasing(lengths, 2048)
    assert time.process_time() - began < 10
    assert sum(map(len, rows)) == 20_000


def dialogue(turns: list[tuple[bool, int]], *, is_official: bool = False) -> Rendered:
    """Turns of the assistant, or not, of so many tokens."""
    tokens: list[int] = []
    targets: list[bool] = []
    for is_learned, size in turns:
        tokens += [START, 9, LINE, *[10] * size, END, LINE]
        targets += [is_official, False, False, *[is_learned] * size, is_learned or is_official, is_official]
    return rendered(tokens, targets)


TURNS = st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=1, max_size=8)


@settings(max_examples=100, deadline=None)
@given(TURNS, st.integers(1, 90), st.booleans())
def test_a_dialogue_is_cut_where_a_turn_ends(turns: list[tuple[bool, int]], limit: int, is_official: bool) -> None:
    whole = dialogue(turns, is_official=is_official)
    cut = truncate(whole, limit, end_of_turn=END)
    fitting = [count for count in range(1, len(turns) + 1) if len(dialogue(turns[:count])) <= limit]
    best = len(turns) if len(turns) in fitting else max(fitting, default=0)
    while best and best < len(turns) and not is_official and not turns[best - 1][0]:
        best -= 1  # Turns at the end that teach nothing.
    expected = dialogue(turns[:best], is_official=is_official) if best else None
    if expected is None or not expected.num_targets:
        assert cut is None
        return
    assert cut is not None
    assert len(cut) <= limit
    assert cut.tokens.tolist() == expected.tokens.tolist()
    assert cut.targets.tolist() == expected.targets.tolist()
    assert (cut is whole) == (best == len(turns))


def test_turns_begin_where_the_first_token_stands_after_an_end() -> None:
    assert turn_starts(np.array([1, 1, 5, 2, 3, 1, 2, 1, 1], dtype=np.int32), 2).tolist() == [0, 5, 7]


def test_a_target_that_comes_first_is_none() -> None:
    assert rendered([1, 2], [True, False]).num_targets == 0
    assert truncate(rendered([1, 2], [True, False]), 2, end_of_turn=2) is None
    with pytest.raises(ValueError, match="must be of one length"):
        Rendered(tokens=np.zeros(2, np.int32), targets=np.zeros(3, np.bool_))
