"""Reads the metadata that torch.distributed.checkpoint pickles, admitting a named list of classes and nothing else."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, BinaryIO

from torch.distributed.checkpoint.metadata import Metadata

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
        CheckpointError: if the file is missing, damaged or asks for another class.
    """
    try:
        with path.open("rb") as stream:
            metadata = NamedClassesUnpickler(stream, path).load()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: missing; the folder is not a torch_dist checkpoint") from error
    except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged checkpoint metadata ({error})") from error
    if not isinstance(metadata, Metadata):
        raise CheckpointError(f"{path}: holds a {type(metadata).__name__}, not checkpoint metadata")
    return metadata
