"""Idle threads of an executor do pieces of others' tasks; the results come in order, whoever did them."""

import threading
import time
from collections.abc import Iterator

import pytest

from data_tools.engine.work_sharing import WorkSharing, work_sharing


@pytest.fixture
def sharing() -> Iterator[WorkSharing]:
    """Of this thread, which has a task, and two idle ones."""
    shared = WorkSharing(3)
    threads = [threading.Thread(target=shared.help_others, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    while shared._num_idle < 2:
        time.sleep(0.001)
    yield shared
    last = threading.Thread(target=shared.help_others, daemon=True)
    last.start()
    for thread in (*threads, last):
        thread.join(10)
        assert not thread.is_alive()


def test_all_threads_work_and_the_order_stays(sharing: WorkSharing) -> None:
    together = threading.Barrier(3, timeout=10)
    workers = set()

    def work(number: int) -> int:
        workers.add(threading.get_ident())
        if number < 3:
            together.wait()  # Passed only if three are at work at a time.
        time.sleep(0.002 * (number % 3))
        return number * number

    assert list(sharing.in_order(work, range(40))) == [number * number for number in range(40)]
    assert len(workers) == 3


def test_few_items_are_taken_ahead(sharing: WorkSharing) -> None:
    taken = []

    def items() -> Iterator[int]:
        for number in range(50):
            taken.append(number)
            yield number

    for number in sharing.in_order(lambda number: number, items()):
        assert len(taken) <= number + 6


def test_an_error_comes_in_its_place(sharing: WorkSharing) -> None:
    busy = threading.Event()
    ended = []

    def work(number: int) -> int:
        if number == 3:
            raise ValueError("three")
        if number > 3:
            busy.set()
            time.sleep(0.05)
            ended.append(number)
        return number

    results = sharing.in_order(work, range(20))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
    # What was begun is over, and nothing begins afterwards.
    at_the_end = list(ended)
    time.sleep(0.1)
    assert ended == at_the_end


def test_without_idle_threads_everything_happens_here_at_once() -> None:
    events: list[tuple[str, int]] = []

    def items() -> Iterator[int]:
        for number in range(3):
            events.append(("taken", number))
            yield number

    def work(number: int) -> int:
        events.append(("done", number))
        return threading.get_ident()

    for found in work_sharing().in_order(work, items()):
        assert found == threading.get_ident()
    assert events == [(what, number) for number in range(3) for what in ("taken", "done")]
