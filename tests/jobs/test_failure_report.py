"""A failing rank's line and record are written before a launcher's SIGTERM is followed, and once."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qwen_megatron.errors import ChangesRefused, DataError, UnseenCheckpoint
from qwen_megatron.jobs.failure import read_failure
from qwen_megatron.jobs.failure_report import FailureReport, held_back
from tests.jobs.test_failure import GONE


class Describes:
    """A stand-in for the watchdog that takes its time to look, while SIGTERM comes."""

    run: Any = None

    def will_leave(self, *, failed: bool) -> None:
        """Nobody is told."""

    def describe_peers(self) -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        return "rank 1 has ended without a word"

    def position(self) -> Any:
        class Start:
            activity = phase = "data"
            step = 3

        return Start()


@pytest.fixture
def report(tmp_path: Path) -> FailureReport:
    class Place:
        rank = 0

    place: Any = Place()
    watchdog: Any = Describes()
    made = FailureReport(tmp_path, place, 0, "a")
    made.watchdog = watchdog
    made.own_folder()
    return made


def test_sigterm_waits_for_line_and_record(
    report: FailureReport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    order: list[str] = []

    def end(number: int, frame: object) -> None:
        order.append("ended" if (tmp_path / "failure.json").exists() else "cut off")

    previous = signal.signal(signal.SIGTERM, end)
    try:
        report.failed(GONE)
        # It comes to whoever handled it before, once.
        assert order == ["ended"]
        assert signal.getsignal(signal.SIGTERM) is end
    finally:
        signal.signal(signal.SIGTERM, previous)
    failure = read_failure(tmp_path)
    assert failure is not None
    assert failure.message.startswith("rank 1 has ended without a word (")
    assert capsys.readouterr().err.count("qwen-megatron: rank 0 (") == 1


@pytest.mark.parametrize(
    ("error", "begun", "kept"),
    [
        (ChangesRefused("another rate"), False, False),
        (DataError("another tokenizer"), False, False),
        (UnseenCheckpoint("not seen"), False, True),
        (ValueError("a bug"), False, True),
        (DataError("damaged"), True, True),
    ],
)
def test_a_refusal_before_training_leaves_no_record(
    report: FailureReport, error: Exception, begun: bool, kept: bool, tmp_path: Path
) -> None:
    """The corrected command would find it, and another job's folder must not change."""
    if begun:
        assert report.watchdog is not None
        run: Any = SimpleNamespace(
            state=SimpleNamespace(consumed_samples=8), job=SimpleNamespace(samples_of=lambda state, steps: 4)
        )
        report.watchdog.run = run
    report.failed(error)
    failure = read_failure(tmp_path)
    assert (failure is not None) == kept
    assert failure is None or failure.settings == "a"


def test_an_error_is_told_once(report: FailureReport, capsys: pytest.CaptureFixture[str]) -> None:
    for error in (ValueError("x"), ArithmeticError("y")):
        report.failed(error)
        report.failed(error)
    assert capsys.readouterr().err.count("qwen-megatron: rank 0 (") == 2


def test_a_signal_is_held_back_in_the_main_thread_only() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def work() -> None:
        with held_back(signal.SIGTERM):
            assert signal.getsignal(signal.SIGTERM) is before

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    with held_back(signal.SIGTERM):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
