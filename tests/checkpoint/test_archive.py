"""A tensor is found in the archive that torch.save makes of it, and in nothing that is not exactly that."""

from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from qwen_megatron.checkpoint.archive import bytes_of, tensor_start
from qwen_megatron.checkpoint.unpickler import STORAGES, tensor_pickle

SHAPES = [(), (1,), (0,), (5,), (0, 4), (4, 0, 3), (1, 1), (3, 4), (1, 3, 5), (2, 3, 4, 5), (300, 70), (70_000,)]
BEFORE, BEHIND = b"before" * 13, b"behind" * 700


@pytest.fixture(params=[True, False], ids=["with checksums", "without checksums"])
def checksums(request: pytest.FixtureRequest) -> Iterator[None]:
    """torch.save with and without its CRC-32."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(request.param)
    yield
    torch.serialization.set_crc32_options(before)


def archive_of(value: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def found_in(path: Path, archive: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> bytes | None:
    """The bytes of the tensor that is found in an archive somewhere in a file; None if none is."""
    path.write_bytes(BEFORE + archive + BEHIND)
    with path.open("rb") as stream:
        start = tensor_start(stream.fileno(), len(BEFORE), len(archive), dtype, shape)
        if start is None:
            return None
        size = torch.Size(shape).numel() * dtype.itemsize
        assert len(BEFORE) <= start <= len(BEFORE) + len(archive) - size
        stream.seek(start)
        return stream.read(size)


@pytest.mark.usefixtures("checksums")
@pytest.mark.parametrize("dtype", STORAGES, ids=str)
def test_every_tensor_that_checkpoints_have_is_found(tmp_path: Path, dtype: torch.dtype) -> None:
    for shape in SHAPES:
        tensor = torch.randint(0, 100, shape).to(dtype)
        archive = archive_of(tensor)
        assert found_in(tmp_path / "file", archive, dtype, shape) == bytes(bytes_of(tensor)), shape
        assert tensor_pickle(dtype, shape) in archive


@pytest.mark.parametrize(
    "other",
    [
        lambda: torch.ones(4, 3),
        lambda: torch.ones(3, 4).bfloat16(),
        lambda: torch.ones(4, 3).T,
        lambda: torch.ones(24).as_strided((3, 4), (4, 1), 4),
        lambda: torch.ones(3, 4, requires_grad=True),
        lambda: torch.nn.Parameter(torch.ones(3, 4)),
        lambda: [torch.ones(3, 4)],
        lambda: {"weight": torch.ones(3, 4)},
        lambda: "text",
        lambda: torch.ones(3, 4, dtype=torch.int32),
        lambda: torch.ones(3, 4).expand(2, 3, 4)[0].expand(3, 4)[:, :1].expand(3, 4),
    ],
)
def test_what_is_no_such_tensor_is_left_to_torch(tmp_path: Path, other: Callable[[], Any]) -> None:
    assert found_in(tmp_path / "file", archive_of(torch.ones(3, 4)), torch.float32, (3, 4)) is not None
    assert found_in(tmp_path / "file", archive_of(other()), torch.float32, (3, 4)) is None


def repacked(archive: bytes, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """The same members, packed by the standard library."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as before, zipfile.ZipFile(stream, "w", compression) as after:
        for member in before.infolist():
            after.writestr(member.filename, change(member.filename.partition("/")[2], before.read(member)))
    return stream.getvalue()


@pytest.mark.usefixtures("checksums")
def test_a_packed_archive_counts_only_uncompressed_and_whole(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(True)
    tensor = torch.rand(30, 40)
    archive = archive_of(tensor)

    def found(change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> bytes | None:
        return found_in(tmp_path / "file", repacked(archive, change, compression), torch.float32, (30, 40))

    assert found(lambda name, content: content) == bytes(bytes_of(tensor))
    assert found(lambda name, content: content, zipfile.ZIP_DEFLATED) is None
    assert found(lambda name, content: b"big" if name == "byteorder" else content) is None
    assert found(lambda name, content: content[:-1] if name == "data/0" else content) is None
    assert found(lambda name, content: content + b"x" if name == "data/0" else content) is None
    assert found(lambda name, content: content + b"." if name == "data.pkl" else content) is None


def test_a_call_in_the_pickle_is_not_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (canary,))

    assert found_in(tmp_path / "file", archive_of(Payload()), torch.float32, (3, 4)) is None
    assert not canary.exists()


def test_a_damaged_archive_is_refused_or_has_the_tensor_in_it(tmp_path: Path) -> None:
    """Whatever is flipped or cut off: no error but that it is no such archive, and no place outside of it."""
    archive, draw = archive_of(torch.rand(3, 4)), random.Random(0)
    refused = 0
    for _ in range(1500):
        damaged = bytearray(archive)
        for _ in range(draw.randrange(1, 4)):
            damaged[draw.randrange(len(damaged))] = draw.choice([0, 1, 255, draw.randrange(256)])
        if draw.random() < 0.2:
            del damaged[draw.randrange(len(damaged)) :]
        refused += found_in(tmp_path / "file", bytes(damaged), torch.float32, (3, 4)) is None
    assert 300 < refused < 1500


def test_a_directory_of_any_size_takes_little_memory(tmp_path: Path) -> None:
    """What the end of an archive claims is compared with what one tensor's can have before it is read."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as zipped:
        for number in range(5000):
            zipped.writestr(f"archive/{number}", b"")
    assert found_in(tmp_path / "file", stream.getvalue(), torch.float32, (3, 4)) is None
