"""Reads the metadata that torch.distributed.checkpoint pickles, admitting a named list of classes and nothing else.

Pickles of tensors are not read at all: what torch would write is known beforehand (`tensor_pickle`).
"""

from __future__ import annotations

import io
import math
import pickle
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from data_tools.io.small_json import MissingFileError, SmallFileError, read_bytes
from qwen_megatron.checkpoint.pickle_limits import LARGEST_BYTES, check_pickle
from qwen_megatron.errors import CheckpointError

ALLOWED = frozenset(
    {
        ("torch.distributed.checkpoint.metadata", "Metadata"),
        ("torch.distributed.checkpoint.metadata", "TensorStorageMetadata"),
        ("torch.distributed.checkpoint.metadata", "TensorProperties"),
        ("torch.distributed.checkpoint.metadata", "ChunkStorageMetadata"),
        ("torch.distributed.checkpoint.metadata", "MetadataIndex"),
        ("torch.distributed.checkpoint.metadata", "StorageMeta"),
        ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"),
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
        ("torch.serialization", "_get_layout"),
        ("torch", "Size"),
        ("torch", "float32"),
        ("torch", "float64"),
        ("torch", "float16"),
        ("torch", "bfloat16"),
        ("torch", "int64"),
        ("torch", "int32"),
        ("pathlib", "PosixPath"),
    }
)
# The classes by which torch.save names a dtype.
STORAGES = {
    torch.float32: torch.FloatStorage,
    torch.float64: torch.DoubleStorage,
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
    torch.int64: torch.LongStorage,
    torch.int32: torch.IntStorage,
}

# What loading a pickle and looking at the result may raise, whatever is in it.
DAMAGE = (
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
)


class NamedClassesUnpickler(pickle.Unpickler):
    """Refuses every global that is not on the list before it is looked up, so nothing foreign is imported or called."""

    def __init__(self, stream: BinaryIO, path: Path):
        super().__init__(stream)
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return self._memory_format
        if (module, name) not in ALLOWED:
            raise CheckpointError(
                f"{self.path}: its pickle asks for {module}.{name}, which checkpoint metadata never needs; "
                "the file is refused, nothing in it was run"
            )
        return super().find_class(module, name)

    def _memory_format(self, kind: object, name: object) -> _MEM_FORMAT_ENCODING:
        """Stands for getattr, by which the first releases of Python 3.11 pickle a member of an enumeration."""
        members = _MEM_FORMAT_ENCODING.__members__
        if kind is _MEM_FORMAT_ENCODING and isinstance(name, str) and name in members:
            return members[name]
        raise CheckpointError(
            f"{self.path}: its pickle asks for an attribute that checkpoint metadata never needs; the file is refused, "
            "nothing in it was run"
        )


def read_metadata(path: Path) -> Metadata:
    """The metadata of a torch_dist checkpoint.

    Raises:
        CheckpointError: if the file is missing, damaged, larger than any real one, or asks for another class.
    """
    try:
        content = read_bytes(path, LARGEST_BYTES)
        check_pickle(content, path)
        metadata = NamedClassesUnpickler(io.BytesIO(content), path).load()
        if not isinstance(metadata, Metadata):
            raise CheckpointError(f"{path}: holds a {type(metadata).__name__}, not checkpoint metadata")
        check_parts(metadata)
    except MissingFileError as error:
        raise CheckpointError(f"{path}: missing; the folder is not a torch_dist checkpoint") from error
    except SmallFileError as error:
        raise CheckpointError(str(error)) from error
    except DAMAGE as error:
        raise CheckpointError(f"{path}: damaged checkpoint metadata ({error})") from error
    return metadata


def check_parts(metadata: Metadata) -> None:
    """Whether everything in it is what the reader takes it for; an object made without its state has no attributes.

    Raises:
        TypeError, AttributeError: it is not.
    """
    for key, entry in metadata.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            continue  # The caller refuses it by its name.
        expect(str, key)
        expect(TensorProperties, entry.properties)
        expect(torch.dtype, entry.properties.dtype)
        for chunk in expect(list, entry.chunks):
            expect(ChunkStorageMetadata, chunk)
            for box in (chunk.offsets, chunk.sizes):
                if len(expect(torch.Size, box)) != len(expect(torch.Size, entry.size)) or min(box, default=0) < 0:
                    raise TypeError(f"{key} has a shard of another shape")
    for index, place in expect(dict, metadata.storage_data).items():
        expect(MetadataIndex, index)
        expect(str, index.fqn)
        expect(str, expect(_StorageInfo, place).relative_path)
        if min(expect(int, place.offset), expect(int, place.length)) < 0:
            raise TypeError(f"{index.fqn} lies at a place below 0")
    expect((StorageMeta, type(None)), metadata.storage_meta)


def expect(kind: Any, value: Any) -> Any:
    """The value, if it is of the kind.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(value, kind):
        raise TypeError(f"a {type(value).__name__} stands where {kind} must")
    return value


class Storage:
    """Stands for the storage of a tensor while `TensorPickler` works."""

    def __init__(self, dtype: torch.dtype, size: int):
        # The persistent id that torch.save gives the first storage: kind, class, key, device, numbers.
        self.persistent_id = ("storage", STORAGES[dtype], "0", "cpu", size)


class Tensor:
    """Stands for a contiguous tensor while `TensorPickler` works."""

    def __init__(self, dtype: torch.dtype, shape: Sequence[int]):
        self.dtype, self.shape = dtype, torch.Size(shape)

    def __reduce__(self) -> tuple[Any, ...]:
        storage = Storage(self.dtype, self.shape.numel())
        strides = tuple(math.prod(max(size, 1) for size in self.shape[axis:]) for axis in range(1, len(self.shape) + 1))
        return torch._utils._rebuild_tensor_v2, (storage, 0, tuple(self.shape), strides, False, OrderedDict())


class TensorPickler(pickle.Pickler):
    """Writes what torch.save writes, without a tensor."""

    def persistent_id(self, obj: Any) -> Any:
        return obj.persistent_id if isinstance(obj, Storage) else None


def tensor_pickle(dtype: torch.dtype, shape: Sequence[int]) -> bytes:
    """The pickle in the archive that torch.save makes of a contiguous tensor that owns its memory and has no gradient.

    Raises:
        KeyError: if checkpoints have no tensors of this dtype.
    """
    stream = io.BytesIO()
    TensorPickler(stream, protocol=torch.serialization.DEFAULT_PROTOCOL).dump(Tensor(dtype, shape))
    return stream.getvalue()
