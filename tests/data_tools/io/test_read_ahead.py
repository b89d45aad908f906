"""Reading ahead: the same pieces, the same error behind them, and a thread that ends."""

import threading
import time
from collections.abc import Iterator

import pytest

from data_tools.io.read_ahead import read_ahead


def counted(count: int, taken: list[int], error: Exception | None = None) -> Iterator[bytes]:
    for number in range(count):
        taken.append(number)
        yield b"%d" % number
    if error is not None:
        raise error


def test_pieces_come_in_order_and_the_error_behind_them() -> None:
    assert list(read_ahead(counted(100, []))) == [b"%d" % number for number in range(100)]
    assert list(read_ahead(iter([]))) == []
    broken = read_ahead(counted(30, [], ValueError("broken here")))
    assert [next(broken) for _ in range(30)] == [b"%d" % number for number in range(30)]
    with pytest.raises(ValueError, match="broken here"):
        next(broken)


def test_no_more_than_a_few_are_taken_and_none_after_closing() -> None:
    taken: list[int] = []
    before = threading.active_count()
    pieces = read_ahead(counted(1000, taken))
    assert next(pieces) == b"0"
    pieces.close()
    assert threading.active_count() == before
    assert len(taken) < 25


def test_large_pieces_wait_one_at_a_time() -> None:
    """One in use, one that waits, one that is made: no more, however long the reader takes."""
    taken: list[int] = []
    pieces = read_ahead(counted(1000, taken), 1)
    assert next(pieces) == b"0"
    while len(taken) < 3:
        time.sleep(0.001)
    time.sleep(0.05)
    assert len(taken) == 3
    pieces.close()
