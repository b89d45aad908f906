"""Weights of a Hugging Face folder straight into a model, at any layout."""

from __future__ import annotations

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories

from qwen_megatron.convert.name_map import Part, entries
from qwen_megatron.convert.weights import WeightSource
from qwen_megatron.model.qwen_model import QwenModel


@torch.no_grad()
def load_hf_weights(source: WeightSource, qwen: QwenModel) -> None:
    """Overwrites this rank's weights; no communication, each rank reads what it holds.

    Weights are converted to the dtype of the model; rows added for the layout become zero.

    Args:
        source: Weights of the model's architecture.
        qwen: A bare model; its parameters are overwritten.
    """
    by_key = {entry.key: entry for entry in entries(source.model)}
    state = qwen.sharded_state_dict()
    apply_factories(state)
    for shard in nested_values(state):
        if not isinstance(shard, ShardedTensor) or shard.data is None:
            continue
        entry = by_key[shard.key]
        part = Part(entry, shard.global_offset[0] if entry.is_layered else None)
        tensor = source.read(part)
        shard.data.zero_()
        offsets = shard.global_offset[shard.prepend_axis_num :]
        # Clipped where the layout has more rows than the vocabulary.
        box = tuple(
            slice(offset, min(offset + size, whole))
            for offset, size, whole in zip(offsets, shard.data.shape, tensor.shape, strict=True)
        )
        values = tensor[box]
        shard.data[tuple(slice(size) for size in values.shape)] = values
