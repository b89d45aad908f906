"""Flat ranges as rectangles: every element once, in order, whatever the shape."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qwen_megatron.checkpoint.optimizer_shards import rectangles


@given(st.data(), st.lists(st.integers(1, 6), min_size=1, max_size=3))
def test_rectangles_are_the_range_in_order(data: st.DataObject, shape: list[int]) -> None:
    numel = math.prod(shape)
    start = data.draw(st.integers(0, numel))
    stop = data.draw(st.integers(start, numel))
    numbers = np.arange(numel).reshape(shape)
    found = rectangles(shape, start, stop)
    taken = [
        numbers[tuple(slice(o, o + n) for o, n in zip(offset, size, strict=True))].ravel() for offset, size in found
    ]
    assert np.concatenate([*taken, []]).tolist() == list(range(start, stop))
    assert len(found) <= 2 * len(shape) - 1
