"""Which file an error of the operating system is about, and what is advised."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from data_tools.commands.outcome import exit_status
from data_tools.errors import DataError, RefusedError
from data_tools.io import system_errors
from data_tools.io.atomic_file import atomic_output, atomic_path
from data_tools.io.system_errors import explained, naming, naming_foreign


def error_of(number: int, *names: object) -> OSError:
    """An OSError as the interpreter makes it."""
    return OSError(number, os.strerror(number), *names)


def test_calls_on_open_files_get_the_name() -> None:
    with pytest.raises(OSError, match=r"No space left on device: '/a/b'"), naming(Path("/a/b")):
        raise error_of(errno.ENOSPC)
    with pytest.raises(PermissionError, match="/c"), naming("/a/b"):
        raise error_of(errno.EACCES, "/c")


@pytest.mark.parametrize("writer", [lambda stream: stream.write(bytes(10**6)), lambda s: np.save(s, np.zeros(10**5))])
def test_a_full_disk_is_named_by_whoever_writes(writer: object) -> None:
    with pytest.raises(OSError, match=r"/dev/full/x|written") as caught:  # noqa: SIM117
        with naming("/dev/full/x"), open("/dev/full", "wb") as stream:
            writer(stream)  # type: ignore[operator]
    assert caught.value.filename == "/dev/full/x"


def test_libraries_that_tell_the_system_error_in_words() -> None:
    with pytest.raises(OSError, match=r"\[Errno 28\] No space left on device: 'x'"), naming_foreign("x"):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(RuntimeError, match="a bug"), naming_foreign("x"):
        raise RuntimeError("a bug")


def test_advice() -> None:
    assert explained(error_of(errno.EMFILE, "x")) == (
        "x: Too many open files; allow more open files (ulimit -n), or give fewer at a time"
    )
    # The first name of a rename is temporary.
    assert explained(error_of(errno.ENOSPC, ".x.tmp", None, "x")).startswith("x: No space left on device; free some")
    assert explained(error_of(errno.EPIPE)) == "Broken pipe"
    assert explained(error_of(errno.EIO, b"a\xff\x1b")).startswith("a\\udcff\\x1b: Input/output error; ")
    assert explained(OSError("something")) == "something"


def test_who_may_use_a_path_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "lock"
    lock.touch()
    denied = error_of(errno.EACCES, str(lock))
    assert "is yours, but its mode" in explained(denied)
    monkeypatch.setattr(system_errors.os, "geteuid", lambda: os.getuid() + 1)
    owner = system_errors._user(os.getuid())
    assert f"{lock}: Permission denied; {lock} belongs to {owner}; ask for the right to use it" in explained(denied)
    assert system_errors._user(2**31 - 5) == f"user {2**31 - 5}"
    missing = error_of(errno.EACCES, str(tmp_path / "new"))
    assert f"{tmp_path} belongs to" in explained(missing)


def test_an_output_that_is_a_folder_is_refused_before_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    for opened in (atomic_output, atomic_path):
        with pytest.raises(IsADirectoryError, match="x"), opened(tmp_path / "x"):
            raise AssertionError
    assert list(tmp_path.rglob("*")) == [tmp_path / "x"]


@pytest.mark.parametrize(
    ("error", "status", "shown"),
    [
        (DataError("bad \x1b"), 1, "p: error: bad \\x1b\n"),
        (RefusedError("no"), 2, "p: error: no\n"),
        (ZeroDivisionError("mine"), 1, "p: error: mine\n"),
        (error_of(errno.EIO, "f"), 1, "p: error: f: Input/output error; the disk is full or fails; look at the "),
        (error_of(errno.EPIPE), 1, "p: error: Broken pipe\n"),
        (KeyboardInterrupt(), 130, "p: interrupted\n"),
    ],
)
def test_status_and_message(error: BaseException, status: int, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(arguments: object) -> int:
        raise error

    assert exit_status("p", [], fail, (ZeroDivisionError,)) == status
    assert capsys.readouterr().err.startswith(shown)


def test_a_bug_is_raised() -> None:
    def fail(arguments: object) -> int:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        exit_status("p", [], fail)
