"""Weights of a Hugging Face folder straight into a model, at any layout."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories

from qwen_megatron.convert.name_map import Part, entries
from qwen_megatron.convert.weights import Box, SlicedSource, WeightSource
from qwen_megatron.model.head_kinds import SCALAR_HEAD
from qwen_megatron.model.qwen_model import QwenModel

log = logging.getLogger(__name__)


@torch.no_grad()
def load_hf_weights(source: WeightSource, qwen: QwenModel) -> None:
    """Overwrites this rank's weights; no communication, reads the slices that this rank holds and nothing else.

    A scalar head, which no folder has, stays as it is. Weights are converted to the dtype of the model; rows added for
    the layout become zero. A source that cannot read slices is read in whole tensors, and the log says so.

    Args:
        source: Weights of the model's architecture.
        qwen: A bare model; its parameters are overwritten.
    Raises:
        CheckpointError: naming the file that cannot be read.
    """
    by_key = {entry.key: entry for entry in entries(source.model)}
    if not isinstance(source, SlicedSource):
        log.info("%s reads whole tensors, of which this rank keeps its part", type(source).__name__)
    for shard in held_shards(qwen):
        if shard.key == SCALAR_HEAD:
            continue
        entry = by_key[shard.key]
        part = Part(entry, shard.global_offset[0] if entry.is_layered else None)
        shard.data.zero_()
        box = box_of(shard, entry.shape(source.model))
        if any(side.start >= side.stop for side in box):
            # Rows of the layout alone.
            continue
        values = source.read_box(part, box) if isinstance(source, SlicedSource) else source.read(part)[box]
        shard.data[tuple(slice(size) for size in values.shape)] = values


@torch.no_grad()
def spread_weights(qwen: QwenModel, replicas: dist.ProcessGroup) -> None:
    """Copies the weights of the group's first rank to its other ranks; collective in the group.

    Args:
        qwen: A bare model.
        replicas: Ranks that hold the same weights, `Groups.dp_cp`.
    """
    if replicas.size() == 1:
        return
    source = dist.get_process_group_ranks(replicas)[0]
    for shard in held_shards(qwen):
        dist.broadcast(shard.data, src=source, group=replicas)


def held_shards(qwen: QwenModel) -> Iterator[ShardedTensor]:
    """What this rank holds of global tensors, those that are several in one taken apart; views of the parameters."""
    state = qwen.sharded_state_dict()
    apply_factories(state)
    for shard in nested_values(state):
        if isinstance(shard, ShardedTensor) and shard.data is not None:
            yield shard


def box_of(shard: ShardedTensor, shape: tuple[int, ...]) -> Box:
    """Where a shard lies in its tensor, clipped where the layout has more rows than the vocabulary.

    Args:
        shard: On this rank.
        shape: Of the tensor, of one layer, without rows of the layout.
    """
    offsets = shard.global_offset[shard.prepend_axis_num :]
    return tuple(
        slice(offset, min(offset + size, whole))
        for offset, size, whole in zip(offsets, shard.data.shape, shape, strict=True)
    )
