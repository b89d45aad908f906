"""Symbolic links and special files where the tools write: refused by name or replaced, never followed."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from data_tools.corpus.lock import corpus_lock
from data_tools.errors import DataError, PathError
from data_tools.io.atomic_file import append_line, write_atomically
from data_tools.io.lock import FileLock, HeldError

VICTIM = b"not yours\n"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file of somebody else's that links point to."""
    path = tmp_path / "elsewhere" / "victim"
    path.parent.mkdir()
    path.write_bytes(VICTIM)
    return path


def test_a_linked_lock_of_a_corpus_is_refused(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "corpus.lock").symlink_to(victim)
    with (
        pytest.raises(DataError, match=r"corpus\.lock: is a symbolic link to .*victim"),
        corpus_lock(tmp_path / "corpus"),
    ):
        pytest.fail("a link was locked")
    assert victim.read_bytes() == VICTIM
    assert (tmp_path / "corpus.lock").is_symlink()


def test_a_dangling_lock_creates_nothing(tmp_path: Path) -> None:
    (tmp_path / "corpus.lock").symlink_to(tmp_path / "new")
    with pytest.raises(DataError, match="symbolic link"), corpus_lock(tmp_path / "corpus", shared=True):
        pytest.fail("a link was locked")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_a_lock_that_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "corpus.lock"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    with pytest.raises(DataError, match=r"corpus\.lock: is not a plain file"), corpus_lock(tmp_path / "corpus"):
        pytest.fail("locked")


def test_a_lock_is_lost_when_its_file_goes_or_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    lock = FileLock(folder / "lock")
    assert lock.still_held()
    with pytest.raises(HeldError, match=f"process {os.getpid()}"):
        FileLock(folder / "lock")
    folder.rename(tmp_path / "moved")
    assert not lock.still_held()
    folder.mkdir()
    other = FileLock(folder / "lock")
    assert other.still_held()
    assert not lock.still_held()
    lock.release(remove=True)
    assert (folder / "lock").exists(), "the file of the other one"
    other.release()
    other.release()
    assert not other.still_held()


def test_lines_are_not_appended_through_a_link(tmp_path: Path, victim: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.symlink_to(victim)
    with pytest.raises(PathError, match=r"log\.jsonl: is a symbolic link"):
        append_line(path, "{}")
    assert victim.read_bytes() == VICTIM


def test_a_torn_line_does_not_swallow_the_next(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a"')
    append_line(path, '{"a": 2}')
    append_line(path, '{"a": 3}')
    assert path.read_bytes() == b'{"a": 1}\n{"a"\n{"a": 2}\n{"a": 3}\n'


def test_a_linked_output_is_replaced_not_followed(tmp_path: Path, victim: Path) -> None:
    path = tmp_path / "corpus.json"
    path.symlink_to(victim)
    write_atomically(path, b"new")
    assert (path.read_bytes(), path.is_symlink()) == (b"new", False)
    assert victim.read_bytes() == VICTIM


def test_a_holder_is_shown_without_terminal_codes(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "corpus.lock", holder="me\x1b]0;title\x07")
    with pytest.raises(DataError) as refusal, corpus_lock(tmp_path / "corpus"):
        pytest.fail("locked")
    assert str(refusal.value).isprintable()
    lock.release()


def test_a_linked_work_folder_is_refused_by_name(
    make_corpus: Callable[..., Path], tmp_path: Path, victim: Path
) -> None:
    (victim.parent / "runs").mkdir()
    (tmp_path / ".corpus.work").symlink_to(victim.parent)
    with pytest.raises(DataError, match=r"\.corpus\.work: is a symbolic link to .*elsewhere"):
        make_corpus()
    assert victim.read_bytes() == VICTIM
    assert (victim.parent / "runs").is_dir()
    assert (tmp_path / ".corpus.work").is_symlink()


@pytest.mark.parametrize("name", ["notes.txt", "runs/../.hidden", ""])
def test_a_work_folder_of_somebody_else_is_refused(make_corpus: Callable[..., Path], tmp_path: Path, name: str) -> None:
    foreign = tmp_path / ".corpus.work" / name
    (tmp_path / ".corpus.work" / "runs").mkdir(parents=True) if name else None
    foreign.write_bytes(VICTIM)
    with pytest.raises(DataError, match=r"\.corpus\.work.*: qwen-data tokenize did not make it"):
        make_corpus()
    assert foreign.read_bytes() == VICTIM


def test_links_in_a_work_folder_lead_nowhere(make_corpus: Callable[..., Path], tmp_path: Path, victim: Path) -> None:
    (tmp_path / ".corpus.work").mkdir()
    (tmp_path / ".corpus.work" / "runs").symlink_to(victim.parent)
    with pytest.raises(DataError, match="outside of"):
        make_corpus()
    assert not (tmp_path / ".corpus.work").exists(), "nothing in it to go on from"
    (tmp_path / ".corpus.scratch-abc").symlink_to(victim.parent)
    (tmp_path / "corpus.bin").symlink_to(victim)
    make_corpus(overwrite=True)
    assert victim.read_bytes() == VICTIM
    assert (tmp_path / ".corpus.scratch-abc").is_symlink(), "no folder that a run made"
    assert not (tmp_path / "corpus.bin").is_symlink()
