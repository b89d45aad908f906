"""Our reader of tensors against torch's, on checkpoints of several layouts, and what it tells those who verify."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.default_planner import (
    DefaultLoadPlanner,
    DefaultSavePlanner,
    create_default_global_save_plan,
)
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import LoadPlan, SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from qwen_megatron.checkpoint.read_tensors import SafeReader, enclosing_rows
from qwen_megatron.checkpoint.storage import FinalFileWriter, HashingFileSystem
from tests.checkpoint.test_version_1 import KEPT

SHAPE = (6, 10, 8)
CUTS = ((0, 2, 6), (0, 5, 10), (0, 8))


class Given(DefaultSavePlanner):
    """Hands out parts of one tensor."""

    def __init__(self, tensor: torch.Tensor, stored: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        self.tensor, self.stored = tensor, stored

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor:
        assert write_item.tensor_data is not None
        chunk = write_item.tensor_data.chunk
        box = tuple(slice(start, start + size) for start, size in zip(chunk.offsets, chunk.sizes, strict=True))
        return self.stored(self.tensor[box])


class Into(DefaultLoadPlanner):
    """Reads into one tensor."""

    def __init__(self, target: torch.Tensor):
        super().__init__()
        self.target = target

    def lookup_tensor(self, index: MetadataIndex) -> torch.Tensor:
        return self.target


def save(folder: Path, tensor: torch.Tensor, stored: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """A checkpoint of one tensor in four parts."""
    folder.mkdir()
    items = []
    for a in range(2):
        for b in range(2):
            starts = torch.Size([CUTS[0][a], CUTS[1][b], 0])
            sizes = torch.Size([CUTS[0][a + 1] - CUTS[0][a], CUTS[1][b + 1] - CUTS[1][b], 8])
            data = TensorWriteData(
                chunk=ChunkStorageMetadata(offsets=starts, sizes=sizes),
                properties=TensorProperties(dtype=tensor.dtype),
                size=torch.Size(SHAPE),
            )
            items.append(WriteItem(index=MetadataIndex("it", starts), type=WriteItemType.SHARD, tensor_data=data))
    writer = FinalFileWriter(folder, HashingFileSystem())
    writer.set_up_storage_writer(is_coordinator=True)
    (plan,), metadata = create_default_global_save_plan([writer.prepare_local_plan(SavePlan(items))])
    (plan,) = writer.prepare_global_plan([plan])
    writer.finish(metadata, [writer.write_data(plan, Given(tensor, stored)).wait()])


def opened(folder: Path, **options: Any) -> tuple[SafeReader, Any]:
    reader = SafeReader(folder, **options)
    metadata = reader.read_metadata()
    reader.set_up_storage_reader(metadata, is_coordinator=True)
    return reader, metadata


def without_torch_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("torch.load was called")

    monkeypatch.setattr(torch, "load", refused)


def any_box(draw: random.Random) -> tuple[list[int], list[int]]:
    offsets = [draw.randrange(size) for size in SHAPE]
    return offsets, [draw.randrange(1, size - offset + 1) for size, offset in zip(SHAPE, offsets, strict=True)]


@pytest.mark.parametrize("uncached", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_box_is_read_without_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, uncached: bool
) -> None:
    tensor, draw = torch.rand(SHAPE).to(dtype), random.Random(0)
    save(tmp_path / "saved", tensor, lambda part: part.contiguous())
    told: list[tuple[str, int, bytes]] = []
    reader, metadata = opened(
        tmp_path / "saved", uncached=uncached, saw=lambda name, start, view: told.append((name, start, bytes(view)))
    )
    without_torch_load(monkeypatch)
    for _ in range(200):
        offsets, lengths = any_box(draw)
        box = ChunkStorageMetadata(offsets=torch.Size(offsets), sizes=torch.Size(lengths))
        items = create_read_items_for_chunk_list("it", metadata.state_dict_metadata["it"], [box])
        wanted = tensor[tuple(slice(o, o + n) for o, n in zip(offsets, lengths, strict=True))]
        # Of the dtype that is stored, of another one, and not contiguous.
        for target in (
            torch.zeros(lengths, dtype=dtype),
            torch.zeros(lengths, dtype=torch.float64),
            torch.zeros([2 * size for size in lengths], dtype=dtype)[::2, ::2, ::2],
        ):
            reader.read_data(LoadPlan(items), Into(target)).wait()
            assert torch.equal(target, wanted.to(target.dtype))
    for name, start, content in told:
        assert (tmp_path / "saved" / name).read_bytes()[start : start + len(content)] == content
    assert told


@pytest.mark.parametrize(
    "stored",
    [lambda part: part.transpose(1, 2).contiguous().transpose(1, 2), lambda part: part.clone().requires_grad_()],
    ids=["other strides", "with a gradient"],
)
def test_other_archives_are_read_as_torch_does(tmp_path: Path, stored: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensor = torch.rand(SHAPE)
    save(tmp_path / "saved", tensor, stored)
    told: list[str] = []
    reader, metadata = opened(tmp_path / "saved", saw=lambda name, start, view: told.append(name))
    box = ChunkStorageMetadata(offsets=torch.Size([0, 0, 0]), sizes=torch.Size(SHAPE))
    items = create_read_items_for_chunk_list("it", metadata.state_dict_metadata["it"], [box])
    target = torch.zeros(SHAPE)
    reader.read_data(LoadPlan(items), Into(target)).wait()
    assert torch.equal(target, tensor)
    # A gradient is none of the stored tensor: torch's writer detaches it.
    assert bool(told) == (stored(tensor).is_contiguous())


def test_checkpoints_of_runs_are_read_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, masters and moments of two ranks, written by an earlier version."""
    reader, metadata = opened(KEPT)
    theirs = FileSystemReader(KEPT)
    theirs.set_up_storage_reader(metadata, is_coordinator=True)
    read = {}
    for source in (theirs, reader):
        if source is reader:
            without_torch_load(monkeypatch)
        for key, entry in metadata.state_dict_metadata.items():
            box = ChunkStorageMetadata(offsets=torch.Size([0] * len(entry.size)), sizes=entry.size)
            target = torch.zeros(entry.size, dtype=entry.properties.dtype)
            items = create_read_items_for_chunk_list(key, entry, [box])
            source.read_data(LoadPlan(items), Into(target)).wait()
            assert source is theirs or torch.equal(target, read[key])
            read[key] = target
    assert any("exp_avg" in key for key in read)


def test_a_box_of_another_size_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "saved", torch.rand(SHAPE), lambda part: part.contiguous())
    reader, metadata = opened(tmp_path / "saved")
    box = ChunkStorageMetadata(offsets=torch.Size([0, 0, 0]), sizes=torch.Size(SHAPE))
    items = create_read_items_for_chunk_list("it", metadata.state_dict_metadata["it"], [box])

    class Wrong(Into):
        def resolve_tensor(self, read_item: Any) -> torch.Tensor:
            return torch.zeros(1)

    with pytest.raises(AssertionError, match="mismatch sizes"):
        reader.read_data(LoadPlan(items), Wrong(torch.zeros(SHAPE)))


def test_a_file_that_is_not_there_stays_that_error(tmp_path: Path) -> None:
    """The loader tells a folder that is not seen by it from a damaged one."""
    save(tmp_path / "saved", torch.rand(SHAPE), lambda part: part.contiguous())
    reader, metadata = opened(tmp_path / "saved")
    (tmp_path / "saved" / "__0_0.distcp").unlink()
    box = ChunkStorageMetadata(offsets=torch.Size([0, 0, 0]), sizes=torch.Size(SHAPE))
    items = create_read_items_for_chunk_list("it", metadata.state_dict_metadata["it"], [box])
    with pytest.raises(FileNotFoundError):
        reader.read_data(LoadPlan(items), Into(torch.zeros(SHAPE)))


def test_the_box_around_a_box_is_one_run_of_numbers() -> None:
    draw = random.Random(0)
    numbers = torch.arange(math.prod(SHAPE)).view(SHAPE)
    for _ in range(200):
        offsets, lengths = any_box(draw)
        box, first = enclosing_rows(SHAPE, offsets, lengths)
        wanted = numbers[tuple(slice(o, o + n) for o, n in zip(offsets, lengths, strict=True))].flatten()
        assert first <= wanted[0]
        assert wanted[-1] < first + box.numel()
        # Along the axes up to the first with more than one number it is the wanted box.
        axis = next((axis for axis, length in enumerate(lengths) if length > 1), len(lengths) - 1)
        assert list(box[: axis + 1]) == lengths[: axis + 1]
