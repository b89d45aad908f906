"""How tensors reach the disk and come back: Megatron-Core's torch_dist format through our own writer and reader."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingConfig, CheckpointingException
from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from megatron.core.dist_checkpointing.strategies.base import LoadCommonStrategy
from megatron.core.dist_checkpointing.strategies.torch import (
    TorchDistLoadShardedStrategy,
)
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemWriter
from torch.distributed.checkpoint.metadata import StorageMeta

from data_tools.io.small_json import SmallFileError, read_object, shown
from qwen_megatron.checkpoint.hashed_file import Digest, DirectHashedFile, HashedFile
from qwen_megatron.checkpoint.manifest import FileEntry
from qwen_megatron.checkpoint.read_tensors import SafeReader
from qwen_megatron.errors import CheckpointError, UnseenCheckpoint
from qwen_megatron.platforms.shims.checkpoint import apply_checkpoint_shims

# What Megatron-Core's loader knows the format by.
METADATA_JSON = "metadata.json"


class HashingFileSystem(FileSystem):
    """Local files; remembers size and sha256 of each one it wrote.

    Args:
        new_digest: Makes the hash.
        is_cached: Whether the files stay in memory too: a run that has to start again reads its last checkpoint soon.
    """

    def __init__(self, new_digest: Callable[[], Digest] = hashlib.sha256, *, is_cached: bool = True) -> None:
        self.new_digest = new_digest
        self.is_cached = is_cached
        self.written: dict[str, FileEntry] = {}

    @contextlib.contextmanager
    def create_stream(self, path: Any, mode: str) -> Iterator[Any]:
        path = Path(path)
        if mode != "wb":
            with path.open(mode) as stream:
                yield stream
            return
        file = (HashedFile if self.is_cached else DirectHashedFile)(path, self.new_digest)
        try:
            yield file
            file.close()
            self.written[path.name] = file.entry
        except RuntimeError as error:
            # torch.save closes its archive after a failed write, and only says that it could not.
            raise file.error or error from error
        finally:
            file.abandon()

    def rename(self, path: Any, new_path: Any) -> None:
        super().rename(path, new_path)
        self.written[Path(new_path).name] = self.written.pop(Path(path).name)


class FinalFileWriter(FileSystemWriter):
    """torch.distributed.checkpoint's writer of one file a rank, on a file system of ours, which syncs by itself."""

    def __init__(self, folder: Path, files: FileSystem):
        super().__init__(folder, single_file_per_rank=True, sync_files=False, thread_count=1)
        self.fs = files

    def storage_meta(self) -> StorageMeta:
        """Nothing: torch would note a random id and the hidden name of the folder, which nobody reads."""
        return StorageMeta()


@contextlib.contextmanager
def without_zip_checksums() -> Iterator[None]:
    """Leaves out the CRC-32 that torch.save computes besides our sha256: it takes three quarters of its time."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


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


def check_format(folder: Path) -> None:
    """Looks at `metadata.json` before Megatron-Core does, which takes it as it is.

    Raises:
        CheckpointError: if it is missing, or names another format than ours.
    """
    path = folder / METADATA_JSON
    try:
        content = read_object(path)
    except SmallFileError as error:
        raise CheckpointError(f"{error}; the folder is not a torch_dist checkpoint") from error
    expected = dataclasses.asdict(CheckpointingConfig("torch_dist", 1))
    if content != expected:
        raise CheckpointError(f"{path}: holds {shown(content)}, not {expected}; the checkpoint cannot be trusted")


def load_tensors(sharded_state_dict: ShardedStateDict, folder: Path) -> dict[str, Any]:
    """Fills a sharded state dict from a checkpoint of any layout.

    Raises:
        CheckpointError: if a tensor is missing or has another shape.
        UnseenCheckpoint: on every rank, naming those that do not see a file that they need: each had verified another
            share of the files.
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
    except CheckpointException as error:
        unseen = [
            f"rank {rank}: {failure}"
            for rank, (failure, _) in sorted(error.failures.items())
            if isinstance(failure, FileNotFoundError)
        ]
        if unseen:
            raise UnseenCheckpoint(
                f"{folder}: verified, but not seen whole by {'; '.join(unseen[:8])}. All nodes must see the same state "
                "of this folder: look at its mount there, then start again"
            ) from error
        raise CheckpointError(f"{folder}: cannot be loaded into this model: {error}") from error
    except (CheckpointingException, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{folder}: cannot be loaded into this model: {error}") from error
