"""Reading without keeping pages: the same bytes, also where the kernel does not know how."""

import errno
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from data_tools.io.uncached import drop_from_cache, read_into


@pytest.mark.parametrize("uncached", [False, True])
def test_the_bytes_are_those_of_the_file(tmp_path: Path, uncached: bool) -> None:
    content = os.urandom(100_000)
    (tmp_path / "file").write_bytes(content)
    target = bytearray(50_000)
    with (tmp_path / "file").open("rb") as stream:
        read_into(stream.fileno(), memoryview(target), 12_345, uncached=uncached)
        assert target == content[12_345:62_345]
        with pytest.raises(OSError, match="has become shorter"):
            read_into(stream.fileno(), memoryview(target), 50_001, uncached=uncached)


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL])
def test_a_kernel_that_does_not_know_it_reads_as_usual(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    usual = os.preadv

    def reading(descriptor: int, buffers: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        if flags:
            raise OSError(number, "not known")
        return usual(descriptor, buffers, offset)

    (tmp_path / "file").write_bytes(b"content")
    monkeypatch.setattr(os, "preadv", reading)
    target = bytearray(7)
    with (tmp_path / "file").open("rb") as stream:
        read_into(stream.fileno(), memoryview(target), 0, uncached=True)
    assert target == b"content"


def test_other_errors_are_told(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(IsADirectoryError):
        read_into(descriptor, memoryview(bytearray(1)), 0)
    os.close(descriptor)


def test_dropping_keeps_the_bytes(tmp_path: Path) -> None:
    content = os.urandom(4 * mmap.PAGESIZE)
    with (tmp_path / "file").open("w+b", buffering=0) as stream:
        stream.write(content)
        drop_from_cache(stream.fileno())
        os.fsync(stream.fileno())
        drop_from_cache(stream.fileno())
        stream.seek(0)
        assert stream.read() == content
