"""A few bytes of pickle can ask for any amount of memory or time; they get neither."""

from __future__ import annotations

import pickle
import pickletools
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from qwen_megatron.checkpoint import pickle_limits
from qwen_megatron.checkpoint.unpickler import read_metadata
from qwen_megatron.errors import CheckpointError


def class_named(module: str, name: str) -> bytes:
    """A class as protocol 4 writes it."""
    texts = b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name))
    return texts + b"\x93"


METADATA = class_named("torch.distributed.checkpoint.metadata", "Metadata")
INDEX = class_named("torch.distributed.checkpoint.metadata", "MetadataIndex")
# A tuple, then the tuple of it twice, forty times: 2**40 values where a hash or a message goes through them.
TWICE = b")\x94" + b"".join(b"h%ch%c\x86\x94" % (i, i) for i in range(40))

BOMBS = {
    "a high number in the memo": b"\x80\x04Nr\xff\xff\xff\xff.",
    "a high number asked for": b"\x80\x04j\xff\xff\xff\xff.",
    "a text of 4 GB": b"\x80\x04X" + struct.pack("<I", (1 << 32) - 1) + b".",
    "bytes of 2^60": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b".",
    "an array of 2^60": b"\x80\x05\x96" + struct.pack("<Q", 1 << 60) + b".",
    "a frame of 2^60": b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"N.",
    "an integer of 2 GB": b"\x80\x04\x8b" + struct.pack("<i", (1 << 31) - 1) + b".",
    "the last value twice, for ever": b"\x80\x04)" + b"2\x86" * 100 + b".",
    "tuples of tuples": b"\x80\x04" + TWICE + b".",
    "as a key": b"\x80\x04}(" + TWICE + b"Nu.",
    "objects of objects": b"\x80\x04"
    + INDEX
    + b"\x94"
    + b"".join(b"h\x00)\x81}(\x8c\x03fqnh%c\x8c\x06offseth%cub\x94" % (i, i) for i in range(40))
    + b".",
    "a list that holds itself": b"\x80\x04]\x94h\x00a.",
    "objects filled after they are shared": b"\x80\x04" + INDEX + b")\x81\x94h\x00h\x00\x86h\x00}b.",
    "nothing on the stack": b"\x80\x04\x85.",
    "a mark passed": b"\x80\x04N(\x85.",
    "no mark": b"\x80\x04t.",
    "cut short": b"\x80\x04X\x10",
    "no end": b"\x80\x04N",
    "two values": b"\x80\x04NN.",
    "something after the end": b"\x80\x04N.N",
    "empty": b"",
    "a persistent id": b"\x80\x04Pabc\n.",
    "an old opcode": b"cos\nsystem\n(S'true'\ntR.",
    "an object without its state": b"\x80\x04" + METADATA + b")\x81.",
    "a class that is no metadata": b"\x80\x04" + INDEX + b".",
    "called with nonsense": b"\x80\x04" + class_named("torch", "Size") + b"\x8c\x02ab\x85R.",
    "called though no function": b"\x80\x04" + class_named("torch", "float32") + b")R.",
    "nested deep": b"\x80\x04" + b"(" * 50_000 + b"N" + b"t" * 50_000 + b".",
}


@pytest.mark.parametrize("content", BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_refused_before_anything_is_made(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / ".metadata"
    path.write_bytes(content)
    started = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as caught:
            read_metadata(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert peak < 100 << 20
    assert time.process_time() - started < 20


def test_limits_of_amounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / ".metadata"
    path.write_bytes(b"\x80\x04](" + b"}" * 1000 + b"e.")
    monkeypatch.setattr(pickle_limits, "MOST_CONTAINERS", 900)
    with pytest.raises(CheckpointError, match="more than 900 objects"):
        read_metadata(path)
    monkeypatch.setattr(pickle_limits, "MOST_OPCODES", 800)
    with pytest.raises(CheckpointError, match="more than 800 opcodes"):
        read_metadata(path)
    with path.open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(CheckpointError, match="1099511627776 bytes, more than"):
        read_metadata(path)


class Attribute:
    """Is pickled as the call of getattr with these arguments."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, self.arguments


def good_metadata(**changed: Any) -> Metadata:
    """One tensor of two shards."""
    size = torch.Size([4, 8])
    halves = [torch.Size([0, 0]), torch.Size([2, 0])]
    tensor = TensorStorageMetadata(
        properties=TensorProperties(dtype=torch.float32),
        size=size,
        chunks=[ChunkStorageMetadata(offsets=offset, sizes=torch.Size([2, 8])) for offset in halves],
    )
    storage = {
        MetadataIndex("x", offset, number): _StorageInfo("__0_0.distcp", 1 << 40, 64)
        for number, offset in enumerate(halves)
    }
    values: dict[str, Any] = {"state_dict_metadata": {"x": tensor}, "storage_data": storage} | changed
    return Metadata(**values)


@pytest.mark.parametrize("protocol", [4, 5])
def test_metadata_is_read(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / ".metadata"
    path.write_bytes(pickle.dumps(good_metadata(), protocol))
    assert read_metadata(path) == good_metadata()
    assert len({name for name, _, _ in pickletools.genops(path.read_bytes())}) > 15


@pytest.mark.parametrize("protocol", [4, 5])
def test_metadata_that_early_releases_of_python_3_11_wrote(
    protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They name the members of enumerations by getattr."""
    path = tmp_path / ".metadata"
    with monkeypatch.context() as patched:
        patched.setattr(_MEM_FORMAT_ENCODING, "__reduce_ex__", lambda one, _: (getattr, (type(one), one.name)))
        path.write_bytes(pickle.dumps(good_metadata(), protocol))
    assert b"getattr" in path.read_bytes()
    assert read_metadata(path) == good_metadata()


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (_MEM_FORMAT_ENCODING, "__class__"),
        (_MEM_FORMAT_ENCODING, "_member_map_"),
        (_MEM_FORMAT_ENCODING, 5),
        (Metadata, "__init__"),
        ("text", "TORCH_CONTIGUOUS_FORMAT"),
    ],
)
def test_other_attributes_are_refused(kind: object, name: object, tmp_path: Path) -> None:
    path = tmp_path / ".metadata"
    path.write_bytes(pickle.dumps(good_metadata(storage_meta=Attribute(kind, name)), 4))
    with pytest.raises(CheckpointError, match="asks for an attribute that checkpoint metadata never needs"):
        read_metadata(path)


@pytest.mark.parametrize(
    "changed",
    [
        {"state_dict_metadata": {1: good_metadata().state_dict_metadata["x"]}},
        {"state_dict_metadata": None},
        {"storage_data": None},
        {"storage_data": {"x": 1}},
        {"storage_data": {MetadataIndex("x"): _StorageInfo("x", -1, 5)}},
        {"storage_data": {MetadataIndex("x"): _StorageInfo("x", 0, 1.5)}},  # type: ignore[arg-type]
        {"storage_meta": 5},
        {"state_dict_metadata": {"x": TensorStorageMetadata(TensorProperties(torch.float32), torch.Size([4]), [None])}},  # type: ignore[list-item]
    ],
)
def test_metadata_of_other_parts_is_refused(changed: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / ".metadata"
    path.write_bytes(pickle.dumps(good_metadata(**changed), 4))
    with pytest.raises(CheckpointError, match="damaged checkpoint metadata"):
        read_metadata(path)
