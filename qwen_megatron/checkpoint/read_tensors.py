"""Reads the tensors of a checkpoint: straight from the files to their places where that can be, else as torch does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.futures import Future

from data_tools.io.uncached import read_into
from qwen_megatron.checkpoint.archive import bytes_of, tensor_start
from qwen_megatron.checkpoint.manifest import FILE_NAME
from qwen_megatron.checkpoint.unpickler import read_metadata
from qwen_megatron.errors import CheckpointError

# Where torch.distributed.checkpoint notes which tensor lies where.
METADATA = ".metadata"


class SafeReader(FileSystemReader):
    """Reads tensors only; the metadata's pickle may name nothing but its own classes.

    Args:
        path: The checkpoint's folder.
        uncached: Whether tensors are read once, so that their pages need not stay in memory.
        saw: Is told file, first byte and bytes of what has been read.
    """

    def __init__(
        self, path: str | Path, *, uncached: bool = False, saw: Callable[[str, int, memoryview], None] | None = None
    ):
        super().__init__(path)
        self.uncached = uncached
        self.saw = saw
        self.chunks: dict[MetadataIndex, tuple[torch.dtype, torch.Size]] = {}

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        path = Path(self.path) / METADATA
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

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        super().set_up_storage_reader(metadata, is_coordinator, *args, **kwargs)
        self.chunks = {
            MetadataIndex(key, chunk.offsets): (entry.properties.dtype, chunk.sizes)
            for key, entry in metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
            for chunk in entry.chunks
        }

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fills the planner's tensors."""
        by_file: dict[str, list[ReadItem]] = {}
        for item in plan.items:
            by_file.setdefault(self.storage_data[item.storage_index].relative_path, []).append(item)
        others: list[ReadItem] = []
        for name, items in by_file.items():
            with (Path(self.path) / name).open("rb", buffering=0) as stream:
                others += [item for item in items if not self.read_plain(name, stream.fileno(), item, planner)]
        return super().read_data(LoadPlan(others), planner)

    def read_plain(self, name: str, descriptor: int, item: ReadItem, planner: LoadPlanner) -> bool:
        """Reads an item if its archive holds what the metadata says, and nothing else; whether it did.

        Args:
            name: Of the file.
            descriptor: Of the file.
            item: What is read.
            planner: Knows the place.
        """
        place, chunk = self.storage_data[item.storage_index], self.chunks.get(item.storage_index)
        if item.type != LoadItemType.TENSOR or chunk is None or getattr(place, "transform_descriptors", None):
            return False
        dtype, sizes = chunk
        start = tensor_start(descriptor, place.offset, place.length, dtype, sizes)
        target = planner.resolve_tensor(item).detach() if start is not None else None
        if start is None or target is None or target.size() != item.lengths or not target.numel():
            return False
        box, first = enclosing_rows(sizes, item.storage_offsets, item.lengths)
        is_place = box == item.lengths and target.dtype == dtype and target.is_cpu and target.is_contiguous()
        values = target if is_place else torch.empty(box, dtype=dtype)
        start += first * dtype.itemsize
        view = bytes_of(values)
        read_into(descriptor, view, start, uncached=self.uncached)
        if self.saw is not None:
            self.saw(name, start, view)
        if not is_place:
            for axis, (offset, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                values = values.narrow(axis, offset, length) if length != values.size(axis) else values
            target.copy_(values)
        planner.commit_tensor(item, target)
        return True


def enclosing_rows(sizes: Sequence[int], offsets: Sequence[int], lengths: Sequence[int]) -> tuple[torch.Size, int]:
    """The smallest box around a box of a tensor whose numbers lie one behind the other in memory.

    Args:
        sizes: Of the tensor.
        offsets: Where the wanted box begins.
        lengths: Its size, not empty.
    Returns:
        Its size, and how many numbers of the tensor stand before it.
    """
    # Up to the first axis along which more than one number is wanted it is the wanted box; behind that it is whole.
    axis = next((number for number, length in enumerate(lengths) if length > 1), len(lengths))
    box = torch.Size([*lengths[: axis + 1], *sizes[axis + 1 :]])
    first = sum(offset * math.prod(sizes[number + 1 :]) for number, offset in enumerate(offsets[: axis + 1]))
    return box, first
