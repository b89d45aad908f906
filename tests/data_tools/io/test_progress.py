"""Progress bars: what a terminal shows at the end, and that nothing else shows anything."""

from __future__ import annotations

import io
import re
import sys

import pytest

from data_tools.io.progress import BYTES, progress_bar


class Terminal(io.StringIO):
    """Text that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, total: int, *steps: int, error: bool = False, unit: str = BYTES) -> str:
    """The last state of a bar, without colours."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    for name, value in (("TERM", "xterm"), ("COLUMNS", "120"), ("NO_COLOR", "1")):
        monkeypatch.setenv(name, value)
    try:
        with progress_bar("writing", total, unit=unit) as progress:
            for step in steps:
                progress.advance(step)
            if error:
                raise OSError("disk full")
    except OSError:
        assert error
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue()).replace("\r", "\n").strip().split("\n")[-1]


@pytest.mark.parametrize("steps", [(1000,), (510,), (900, 900), (), (1,) * 7])
def test_a_bar_ends_full_with_units(monkeypatch: pytest.MonkeyPatch, steps: tuple[int, ...]) -> None:
    line = shown(monkeypatch, 2_000_000, *(step * 1000 for step in steps))
    assert "writing" in line
    assert "100%" in line
    assert "2.0/2.0 MB" in line
    assert re.search(r"[kMGT]?B/s|bytes/s", line)
    assert "took 0:00" in line
    assert "?" not in line
    assert "-:--" not in line


def test_a_bar_of_other_things_than_bytes_says_what_it_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    line = shown(monkeypatch, 52_487, 1000, unit="merges")
    assert "52487/52487 merges" in line
    assert re.search(r"merges [\d,]+/s took", line)
    assert "B/s" not in line


def test_a_bar_of_what_failed_does_not_end_full(monkeypatch: pytest.MonkeyPatch) -> None:
    line = shown(monkeypatch, 2000, 4000, error=True)
    assert "100%" not in line
    assert " 99%" in line


def test_nothing_to_do_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, 0) == ""


def test_other_than_terminals_see_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar("writing", 10) as progress:
        progress.advance(10)
    assert stream.getvalue() == ""
