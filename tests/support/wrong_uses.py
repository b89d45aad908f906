"""A command that is wrong: what it says, how it ends, and that it leaves nothing behind."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

# Command without the program's name, exit status, words of the message.
WrongUse = tuple[str, int, list[str]]


def names_of(uses: Sequence[WrongUse]) -> list[str]:
    """A name for each row of a table."""
    return [command or "nothing" for command, _, _ in uses]


def content(folder: Path, left: str = "") -> dict[str, bytes]:
    """Every file below a folder, but those whose names end with `left`, if that is given."""
    paths = [path for path in folder.rglob("*") if path.is_file() and not (left and path.name.endswith(left))]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def said_by(
    main: Callable[[list[str]], int],
    use: WrongUse,
    prepared: Path,
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    *,
    left: str = "",
) -> str:
    """Runs a wrong command in a copy of a prepared folder and checks all that its row tells.

    Args:
        main: The program.
        use: The row.
        prepared: What the command finds in its folder.
        here: Where the copy is made.
        capsys, monkeypatch: pytest's.
        left: End of the names of files that may be left behind.
    Returns:
        What it printed on stderr.
    """
    command, status, words = use
    shutil.copytree(prepared, here)
    monkeypatch.chdir(here)
    before = content(here, left)
    try:
        found = main(command.split())
    except SystemExit as stop:
        found = int(str(stop.code))
    shown = capsys.readouterr().err
    assert found == status, shown
    for word in words:
        assert word in shown, shown
    assert content(here, left) == before
    return shown
