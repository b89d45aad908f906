"""From a Hugging Face folder to a checkpoint that holds weights only; the model is never built."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner, create_default_global_save_plan
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

from data_tools.io.progress import progress_bar
from data_tools.io.read_ahead import read_ahead
from qwen_megatron.checkpoint.environment import environment
from qwen_megatron.checkpoint.load import existing
from qwen_megatron.checkpoint.manifest import FileEntry, hashed, write_manifest, write_synced
from qwen_megatron.checkpoint.state import STATE, CheckpointState, ModelState
from qwen_megatron.checkpoint.storage import (
    METADATA_JSON,
    FinalFileWriter,
    HashingFileSystem,
    without_zip_checksums,
)
from qwen_megatron.config.serialize import to_dict
from qwen_megatron.convert.hf_folder import HfFolder
from qwen_megatron.convert.name_map import Part, parts
from qwen_megatron.convert.output_folder import check_replaceable, output_folder
from qwen_megatron.convert.weights import FiniteWeights, WeightSource, one_thread
from qwen_megatron.train.names import MAIN
from qwen_megatron.train.state import TrainState

# Embeddings are cut into pieces of about this size, so that neither writer nor reader holds a whole one.
PIECE_BYTES = 64 << 20


def from_hf(folder: Path, out: Path, *, overwrite: bool = False, allow_nonfinite: bool = False) -> None:
    """Writes a checkpoint with the weights of a Hugging Face folder, in their dtype.

    It can be loaded at any layout (`checkpoint.init_from`); a run cannot go on from it, it has no optimizer state.
    The model is not built; while one layer's weight is written the next two are read. Nothing in the folder is run.

    Args:
        folder: safetensors and config.json of a qwen1, qwen2 or qwen3 model.
        out: The checkpoint's folder.
        overwrite: Replace a model that is already in `out`.
        allow_nonfinite: Take weights that hold NaN or infinity too.
    Raises:
        CheckpointError: if the folder is incomplete, damaged or of another architecture, or `out` exists.
    """
    check_replaceable(out, overwrite=overwrite)
    source = HfFolder(existing(folder), uncached=True)
    write_weights(source if allow_nonfinite else FiniteWeights(source, folder), out, overwrite=overwrite)


def write_weights(source: WeightSource, out: Path, *, overwrite: bool = False) -> None:
    """Writes a checkpoint that holds weights only.

    Args:
        source: The weights.
        out: The checkpoint's folder.
        overwrite: Replace a model that is already in `out`.
    Raises:
        CheckpointError: if the weights cannot be read, or `out` exists.
    """
    with output_folder(out, overwrite=overwrite) as partial:
        files = write_tensors(source, partial, f"writing {out.name}")
        save_config(CheckpointingConfig("torch_dist", 1), str(partial))
        files[METADATA_JSON] = hashed(partial / METADATA_JSON)
        state = CheckpointState(
            train_state=TrainState(),
            models={MAIN: ModelState(config=to_dict(source.model))},
            config={"model": to_dict(source.model)},
            data={},
            environment=environment(),
        )
        files[STATE] = write_synced(partial / STATE, state.to_json())
        write_manifest(partial, files)


def write_tensors(source: WeightSource, folder: Path, title: str) -> dict[str, FileEntry]:
    """Writes the shards and their metadata in the format of torch.distributed.checkpoint, without a process group.

    Returns:
        Size and checksum of each file.
    """
    pieces = [piece for part in parts(source.model) for piece in pieces_of(part, source)]
    files = HashingFileSystem(is_cached=False)
    writer = FinalFileWriter(folder, files)
    writer.set_up_storage_writer(is_coordinator=True)
    plan = writer.prepare_local_plan(SavePlan([piece.write_item() for piece in pieces]))
    plans, metadata = create_default_global_save_plan([plan])
    (plan,) = writer.prepare_global_plan(plans)
    with (
        progress_bar(title, sum(piece.size_bytes for piece in pieces)) as progress,
        contextlib.closing(read_ahead(pieces_read(source, pieces), 1)) as tensors,
        without_zip_checksums(),
    ):
        results = writer.write_data(plan, StreamingPlanner(tensors, progress.advance)).wait()
    writer.finish(metadata, [results])
    return files.written


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What is written at once: one layer's weight, or some rows of a weight outside of the layers.

    Attributes:
        part: What it belongs to.
        rows: The rows; None for all.
        offsets: Where it begins in the global tensor.
        sizes: Its shape in the global tensor.
        global_shape: Shape of the global tensor.
        dtype: As stored.
    """

    part: Part
    rows: slice | None
    offsets: torch.Size
    sizes: torch.Size
    global_shape: torch.Size
    dtype: torch.dtype

    @property
    def index(self) -> MetadataIndex:
        """Its name in the checkpoint's metadata."""
        return MetadataIndex(f"{MAIN}.{self.part.entry.key}", self.offsets)

    @property
    def size_bytes(self) -> int:
        """Bytes of its values."""
        return self.sizes.numel() * self.dtype.itemsize

    def write_item(self) -> WriteItem:
        """Its place in a saving plan."""
        return WriteItem(
            index=self.index,
            type=WriteItemType.SHARD,
            tensor_data=TensorWriteData(
                chunk=ChunkStorageMetadata(offsets=self.offsets, sizes=self.sizes),
                properties=TensorProperties(dtype=self.dtype),
                size=self.global_shape,
            ),
        )


def pieces_of(part: Part, source: WeightSource) -> Iterator[Piece]:
    """Cuts a part."""
    shape, dtype = part.entry.shape(source.model), source.dtype(part.entry)
    if part.layer is not None:
        yield Piece(
            part=part,
            rows=None,
            offsets=torch.Size([part.layer, *(0 for _ in shape)]),
            sizes=torch.Size([1, *shape]),
            global_shape=torch.Size([source.model.num_layers, *shape]),
            dtype=dtype,
        )
        return
    row_bytes = math.prod(shape[1:]) * dtype.itemsize
    step = max(1, PIECE_BYTES // row_bytes)
    for start in range(0, shape[0], step):
        stop = min(start + step, shape[0])
        yield Piece(
            part=part,
            rows=slice(start, stop),
            offsets=torch.Size([start, *(0 for _ in shape[1:])]),
            sizes=torch.Size([stop - start, *shape[1:]]),
            global_shape=torch.Size(shape),
            dtype=dtype,
        )


def pieces_read(source: WeightSource, pieces: Iterable[Piece]) -> Iterator[tuple[MetadataIndex, torch.Tensor]]:
    """Reads pieces, each with its name in the checkpoint's metadata."""
    with one_thread():
        for piece in pieces:
            yield piece.index, source.read(piece.part, piece.rows).reshape(piece.sizes)


class StreamingPlanner(DefaultSavePlanner):
    """Hands out pieces that come in the order in which the writer asks for them.

    Args:
        tensors: The pieces.
        advance: Told the bytes of each.
    """

    def __init__(self, tensors: Iterator[tuple[MetadataIndex, torch.Tensor]], advance: Callable[[int], None]):
        super().__init__()
        self.tensors = tensors
        self.advance = advance

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor:
        index, tensor = next(self.tensors)
        if index != write_item.index:
            raise RuntimeError(f"{index} came where {write_item.index} was planned")
        self.advance(tensor.nbytes)
        return tensor
