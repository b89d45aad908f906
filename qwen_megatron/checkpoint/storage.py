"""How tensors reach the disk and come back: Megatron-Core's torch_dist format through our own writer and reader."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch.distributed.checkpoint as dcp
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from megatron.core.dist_checkpointing.strategies.base import LoadCommonStrategy
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    TorchDistLoadShardedStrategy,
    TorchDistSaveShardedStrategy,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from qwen_megatron.checkpoint.manifest import FILE_NAME, FileEntry
from qwen_megatron.checkpoint.unpickler import read_metadata
from qwen_megatron.errors import CheckpointError
from qwen_megatron.platforms.shims.checkpoint import apply_checkpoint_shims


class HashingStream:
    """A file that hashes what is written to it; writing goes strictly forward."""

    def __init__(self, stream: BinaryIO):
        self.stream = stream
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self.digest.update(view)
        self.size += len(view)
        return self.stream.write(view)

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        self.stream.flush()

    def fileno(self) -> int:
        self.stream.flush()
        return self.stream.fileno()

    def close(self) -> None:
        self.stream.close()


class HashingFileSystem(FileSystem):
    """Local files; remembers size and sha256 of each one it wrote."""

    def __init__(self) -> None:
        self.written: dict[str, FileEntry] = {}

    @contextlib.contextmanager
    def create_stream(self, path: Any, mode: str) -> Iterator[Any]:
        path = Path(path)
        with path.open(mode) as stream:
            if mode != "wb":
                yield stream
                return
            hashing = HashingStream(stream)
            yield hashing
            self.written[path.name] = FileEntry(hashing.size, hashing.digest.hexdigest())

    def rename(self, path: Any, new_path: Any) -> None:
        super().rename(path, new_path)
        self.written[Path(new_path).name] = self.written.pop(Path(path).name)


class HashingSaveStrategy(TorchDistSaveShardedStrategy):
    """Saves in this process: one file a rank, hashed while it is written, synced.

    Megatron-Core's own writer forks processes on every rank for each save.

    Attributes:
        written: Files of this rank after `save`.
    """

    def __init__(self) -> None:
        super().__init__("torch_dist", 1)
        self.written: dict[str, FileEntry] = {}

    def save(self, sharded_state_dict: ShardedStateDict, checkpoint_dir: str | Path) -> None:
        writer = FileSystemWriter(checkpoint_dir, single_file_per_rank=True, sync_files=True, thread_count=1)
        writer.fs = HashingFileSystem()
        flat, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded_state_dict, self.keep_only_main_replica)
        dcp.save(
            mcore_to_pyt_state_dict(flat, False),
            storage_writer=writer,
            planner=MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False),
        )
        self.written = writer.fs.written


class SafeReader(FileSystemReader):
    """Reads tensors only; the metadata's pickle may name nothing but its own classes."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        path = Path(self.path) / ".metadata"
        metadata = read_metadata(path)
        objects = [
            key for key, entry in metadata.state_dict_metadata.items() if not isinstance(entry, TensorStorageMetadata)
        ]
        if objects:
            # The loader would unpickle such an entry's bytes; our checkpoints have none.
            raise CheckpointError(f"{path}: holds pickled objects ({', '.join(objects[:3])}); only tensors are loaded")
        for entry in (metadata.storage_data or {}).values():
            if not FILE_NAME.fullmatch(str(entry.relative_path)):
                raise CheckpointError(
                    f"{path}: names a file {entry.relative_path!r}; only plain file names are allowed"
                )
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class NoCommonState(LoadCommonStrategy):
    """Leaves Megatron-Core's pickled common state alone: ours stands in JSON."""

    def load_common(self, checkpoint_dir: str | Path) -> dict[str, Any]:
        return {}

    def load_sharded_objects(self, sharded_objects_state_dict: Any, checkpoint_dir: str | Path) -> dict[str, Any]:
        return {}

    def check_backend_compatibility(self, loaded_version: Any) -> None:
        """Nothing is read."""

    def check_version_compatibility(self, loaded_version: Any) -> None:
        """Nothing is read."""


def load_tensors(sharded_state_dict: ShardedStateDict, folder: Path) -> dict[str, Any]:
    """Fills a sharded state dict from a checkpoint of any layout.

    Raises:
        CheckpointError: if a tensor is missing or has another shape.
    """
    apply_checkpoint_shims(lambda path, cache_metadata=False: SafeReader(path))
    try:
        return dist_checkpointing.load(
            sharded_state_dict,
            str(folder),
            sharded_strategy=TorchDistLoadShardedStrategy(),
            common_strategy=NoCommonState(),
            strict=dist_checkpointing.validation.StrictHandling.ASSUME_OK_UNEXPECTED,
        )
    except (CheckpointingException, CheckpointException, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{folder}: cannot be loaded into this model: {error}") from error
