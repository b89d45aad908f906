"""Files written past the page cache: the bytes of a usual file, whatever the places, the file system and the memory."""

import mmap
import os
import random
import threading
from pathlib import Path

import pytest

from data_tools.io import direct_file
from data_tools.io.direct_file import BLOCK_BYTES, DirectFile
from data_tools.io.direct_output import DirectOutput


def write(path: Path, content: bytes, cuts: list[int]) -> bytes:
    """Writes the content in pieces; what was looked at on the way."""
    looked: list[bytes] = []
    file = DirectFile(path, lambda view: looked.append(bytes(view)))
    try:
        for start, stop in zip([0, *cuts], [*cuts, len(content)], strict=True):
            piece = bytearray(content[start:stop])
            file.write(memoryview(piece))
            piece[:] = bytes(len(piece))  # It may be changed as soon as it was taken.
        file.finish()
    finally:
        file.close()
    return b"".join(looked)


def refuse_direct_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems open a file so, and then do not write it so."""
    descriptors: list[int] = []
    opened, written = direct_file.open_direct, os.pwrite

    def opening(path: str, flags: int) -> int | None:
        descriptor = opened(path, flags)
        descriptors.extend([descriptor] if descriptor is not None else [])
        return descriptor

    def writing(descriptor: int, content: memoryview, place: int) -> int:
        if descriptor in descriptors:
            descriptors.remove(descriptor)
            raise OSError(22, "Invalid argument")
        return written(descriptor, content, place)

    monkeypatch.setattr(direct_file, "open_direct", opening)
    monkeypatch.setattr(os, "pwrite", writing)


@pytest.fixture(params=["direct", "refused when it is opened", "refused when it is written"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the file system does."""
    if request.param == "refused when it is opened":
        monkeypatch.setattr(direct_file, "open_direct", lambda path, flags: None)
    elif request.param == "refused when it is written":
        refuse_direct_writes(monkeypatch)
    return request.param


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, BLOCK_BYTES, BLOCK_BYTES + 1, 5 * BLOCK_BYTES - 4096])
def test_a_stream_is_written_and_looked_at_in_order(tmp_path: Path, size: int) -> None:
    content, draw = os.urandom(size), random.Random(size)
    cuts = sorted(draw.randrange(size + 1) for _ in range(12)) if size > 1 else []
    before = threading.active_count()
    (tmp_path / "file").write_bytes(b"older and longer" * 10)
    assert write(tmp_path / "file", content, cuts) == content
    assert (tmp_path / "file").read_bytes() == content
    assert threading.active_count() == before


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize("seed", range(4))
def test_pieces_come_to_their_places_in_any_order(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    sizes = [draw.choice([1, 100, 4096, 5000, 8192, 1 << 20, BLOCK_BYTES + 4097]) for _ in range(20)]
    content = os.urandom(sum(sizes))
    places = [sum(sizes[:number]) for number in range(20)]
    order = draw.sample(range(20), 20)
    file = DirectFile(tmp_path / "file")
    for number in order:
        file.write(memoryview(content)[places[number] : places[number] + sizes[number]], places[number])
    file.finish()
    file.close()
    assert (tmp_path / "file").read_bytes() == content


def test_the_disk_is_asked_for_whole_blocks_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes past the cache is aligned in the file; at most its two ends go through it."""
    cached, written = [0], os.pwrite

    def writing(descriptor: int, content: memoryview, place: int) -> int:
        if os.readlink(f"/proc/self/fd/{descriptor}") and descriptor == file._direct:
            assert place % 4096 == len(content) % 4096 == 0
        else:
            cached[0] += len(content)
        return written(descriptor, content, place)

    file = DirectFile(tmp_path / "file")
    if file._direct is None:
        file.close()
        return  # Of a file system that has no such writing.
    monkeypatch.setattr(os, "pwrite", writing)
    file.write(memoryview(os.urandom(3 * BLOCK_BYTES + 5000)), 4090)
    file.finish()
    file.close()
    assert 0 < cached[0] < 2 * 4096


def test_memory_without_large_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Memory(mmap.mmap):
        def madvise(self, *advice: int) -> None:
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(mmap, "mmap", Memory)
    monkeypatch.setattr(direct_file, "_spare", [])
    assert write(tmp_path / "file", b"content", []) == b"content"


def test_an_error_is_told_to_all_who_wait(tmp_path: Path) -> None:
    (tmp_path / "full").symlink_to("/dev/full")
    file = DirectFile(tmp_path / "full")
    file.write(memoryview(b"x"))
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            file.finish()
    file.close()


def test_an_output_is_there_when_it_is_published_and_gone_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = threading.active_count()
    path = tmp_path / "output"
    output = DirectOutput(path)
    output.write(memoryview(b"content"))
    assert not path.exists()
    output.publish()
    assert path.read_bytes() == b"content"
    discarded = DirectOutput(path)
    discarded.write(memoryview(bytes(3 * BLOCK_BYTES)))
    discarded.discard()
    failing = DirectOutput(path)
    failing.write(memoryview(b"other"))

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left") as raised:
        failing.publish()
    assert raised.value.filename == str(path)
    assert [one.name for one in tmp_path.iterdir()] == ["output"]
    assert path.read_bytes() == b"content"
    assert threading.active_count() == before


def test_a_full_disk_is_told_by_what_comes_next(tmp_path: Path) -> None:
    (tmp_path / "full").symlink_to("/dev/full")
    file = DirectFile(tmp_path / "full")
    with pytest.raises(OSError, match="No space left"):
        # More than may wait.
        file.write(memoryview(bytes(8 * BLOCK_BYTES)))
    file.close()


def test_a_file_that_is_given_up_waits_for_nobody(tmp_path: Path) -> None:
    before = threading.active_count()
    file = DirectFile(tmp_path / "file")
    file.write(memoryview(bytes(BLOCK_BYTES + 1)))
    file.close()
    assert threading.active_count() == before


def test_an_error_of_who_looks_is_told(tmp_path: Path) -> None:
    def look(view: memoryview) -> None:
        raise ZeroDivisionError

    file = DirectFile(tmp_path / "file", look)
    file.write(memoryview(b"x"))
    with pytest.raises(ZeroDivisionError):
        file.finish()
    file.close()
