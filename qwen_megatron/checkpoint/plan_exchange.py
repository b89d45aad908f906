"""What a rank tells rank 0 of its file: which part of which tensor it wrote, and where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult

from qwen_megatron.checkpoint.manifest import FILE_NAME
from qwen_megatron.parallel.objects import list_of, of_type

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32)
}

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Item:
    """A rectangle of a tensor and its bytes.

    Attributes:
        key: Of the global tensor.
        shape: Of the global tensor.
        dtype: Its name.
        offsets, sizes: Where the rectangle begins, and its sides.
        start, length: Where its bytes lie in the rank's file.
    """

    key: str
    shape: Sizes
    dtype: str
    offsets: Sizes
    sizes: Sizes
    start: int
    length: int

    def write_item(self) -> WriteItem:
        """Its place in a plan of torch."""
        return WriteItem(
            index=MetadataIndex(self.key, torch.Size(self.offsets)),
            type=WriteItemType.SHARD,
            tensor_data=TensorWriteData(
                chunk=ChunkStorageMetadata(offsets=torch.Size(self.offsets), sizes=torch.Size(self.sizes)),
                properties=TensorProperties(dtype=DTYPES[self.dtype]),
                size=torch.Size(self.shape),
            ),
        )


@dataclass(frozen=True)
class RankPlan:
    """What a rank wrote.

    Attributes:
        file: Its name; None if torch wrote none.
        items: In the order in which they were planned.
    """

    file: str | None
    items: tuple[Item, ...]

    @classmethod
    def of(cls, plan: SavePlan, results: Sequence[WriteResult]) -> RankPlan:
        """From what torch planned and what it says of the writing."""
        stored = {result.index: result.storage_data for result in results}
        files = {info.relative_path for info in stored.values()}
        assert len(files) <= 1, files
        return cls(next(iter(files), None), tuple(item_of(item, stored[item.index]) for item in plan.items))

    def write_items(self) -> list[WriteItem]:
        """The parts as torch's planner takes them."""
        return [item.write_item() for item in self.items]


def item_of(item: WriteItem, stored: _StorageInfo) -> Item:
    """A part of a tensor that torch planned and wrote."""
    data = item.tensor_data
    assert data is not None
    assert data.chunk is not None
    return Item(
        key=item.index.fqn,
        shape=tuple(data.size),
        dtype=str(data.properties.dtype).removeprefix("torch."),
        offsets=tuple(data.chunk.offsets),
        sizes=tuple(data.chunk.sizes),
        start=stored.offset,
        length=stored.length,
    )


def described(plan: RankPlan) -> list[Any]:
    """A plan as JSON values; keys and shapes stand once for all rectangles of a tensor."""
    tensors: dict[tuple[str, Sizes, str], list[list[Any]]] = {}
    for item in plan.items:
        place = [item.offsets, item.sizes, item.start, item.length]
        tensors.setdefault((item.key, item.shape, item.dtype), []).append(place)
    return [plan.file, [[*tensor, places] for tensor, places in tensors.items()]]


def parse(value: Any) -> RankPlan:
    """The plan that another rank sent.

    Raises:
        ValueError, TypeError, KeyError: if it is none.
    """
    file, tensors = list_of(lambda part: part, 2)(value)
    if file is not None and not FILE_NAME.fullmatch(of_type(str)(file)):
        raise ValueError("no plain file name")
    items = []
    for tensor in of_type(list)(tensors):
        key, shape, dtype, places = list_of(lambda part: part, 4)(tensor)
        DTYPES[of_type(str)(dtype)]
        for place in of_type(list)(places):
            offsets, sizes, start, length = list_of(lambda part: part, 4)(place)
            items.append(
                Item(
                    of_type(str)(key),
                    counts(shape),
                    dtype,
                    counts(offsets, len(shape)),
                    counts(sizes, len(shape)),
                    *counts([start, length]),
                )
            )
    if items and file is None:
        raise ValueError("parts of no file")
    return RankPlan(file, tuple(items))


def counts(value: Any, length: int | None = None) -> Sizes:
    """Sizes or offsets out of a plan that another rank sent.

    Raises:
        ValueError, TypeError: if it is no list of numbers from zero on.
    """
    numbers = list_of(of_type(int), length)(value)
    if any(number < 0 for number in numbers):
        raise ValueError("a negative size")
    return tuple(numbers)


def merged(plans: Sequence[RankPlan], global_plans: Sequence[SavePlan]) -> list[list[WriteResult]]:
    """Where everything lies, under the indices of the plan of all ranks."""
    return [
        [
            WriteResult(
                index=planned.index,
                size_in_bytes=item.length,
                storage_data=_StorageInfo(str(plan.file), item.start, item.length),
            )
            for item, planned in zip(plan.items, global_plan.items, strict=True)
        ]
        for plan, global_plan in zip(plans, global_plans, strict=True)
    ]
