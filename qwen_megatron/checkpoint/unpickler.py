"""Reads the metadata that torch.distributed.checkpoint pickles, admitting a named list of classes and nothing else."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
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
        if (module, name) not in ALLOWED:
            raise CheckpointError(
                f"{self.path}: its pickle asks for {module}.{name}, which checkpoint metadata never needs; "
                "the file is refused, nothing in it was run"
            )
        return super().find_class(module, name)


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
