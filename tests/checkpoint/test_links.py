"""Symbolic links in a run's folder: refused by name or replaced, never followed."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen_megatron.checkpoint.run_lock import run_lock
from qwen_megatron.errors import CheckpointError

VICTIM = b"not yours\n"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file of somebody else's that links point to."""
    path = tmp_path / "elsewhere" / "victim"
    path.parent.mkdir()
    path.write_bytes(VICTIM)
    return path


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A run's folder."""
    path = tmp_path / "run"
    path.mkdir()
    return path


def test_a_linked_lock_is_refused(directory: Path, victim: Path) -> None:
    (directory / "lock").symlink_to(victim)
    with pytest.raises(CheckpointError, match=r"run/lock: is a symbolic link to .*victim"), run_lock(directory):
        pytest.fail("a link was locked")
    assert victim.read_bytes() == VICTIM


def test_a_lock_is_lost_with_its_folder(directory: Path, tmp_path: Path) -> None:
    with run_lock(directory) as lock:
        assert lock.still_held()
        directory.rename(tmp_path / "moved")
        assert not lock.still_held()
        directory.mkdir()
        with run_lock(directory) as other:
            assert other.still_held()
            assert not lock.still_held()
