"""What each rank writes and reads of the models of a job: sharded tensors over {name: trainable}.

The key of a tensor in a checkpoint is the model's name, a dot, and Megatron-Core's name; before the name of a weight
stands `optimizer.state.param.`, `.exp_avg.` or `.exp_avg_sq.` for masters and moments. Checkpoints of version 1 hold
one model and no names.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import extract_matching_values, nested_values
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, ShardedTensorFactory

from qwen_megatron.checkpoint.optimizer_shards import owned_tensors
from qwen_megatron.errors import CheckpointError
from qwen_megatron.model.qwen_model import QwenModel
from qwen_megatron.train.optimizer import allocate_moments
from qwen_megatron.train.trainable import Trainable

# How the name of what a module keeps beside its tensors ends: torch's word, which Transformer Engine's modules use.
EXTRA_STATE = "_extra_state"


def saved_tensors(trainables: Collection[Trainable]) -> dict[str, ShardedTensor]:
    """What this rank writes: its own part of the weights, of their fp32 masters and of the moments.

    Of a model without an optimizer, the weights as each rank holds them; replicas are left out when they are written.
    """
    tensors: dict[str, ShardedTensor] = {}
    for trainable in trainables:
        weights = all_weights(trainable)
        if trainable.optimizer is not None:
            owned = owned_tensors(trainable.optimizer, weights, weights=True)
        else:
            owned = {f"{shard.key} {shard.global_offset}": shard for shard in whole_shards(weights)}
        prefix = f"{trainable.name}."
        tensors |= {prefix + place: shard for place, shard in named(owned, prefix).items()}
    return tensors


def loaded_tensors(trainable: Trainable, prefix: str) -> dict[str, Any]:
    """What this rank reads: all weights of its layers, and its own part of the optimizer's state, in place.

    Args:
        trainable: Whose memory is filled.
        prefix: Before its keys in the checkpoint.
    """
    if trainable.optimizer is None:
        return named(all_weights(trainable), prefix)
    # Zeros: rows that pad the vocabulary for this layout are in no checkpoint.
    allocate_moments(trainable.optimizer)
    weights = all_weights(trainable)
    owned = owned_tensors(trainable.optimizer, weights, weights=False)
    return named({**weights, "optimizer": owned}, prefix)


def all_weights(trainable: Trainable) -> dict[str, Any]:
    """The sharded weights of each piece of the model on this rank."""
    return {f"model{i}": sharded_weights(model) for i, model in enumerate(trainable.models)}


def sharded_weights(qwen: QwenModel, prefix: str = "") -> dict[str, Any]:
    """The sharded weights of a bare model."""
    # Layers add pickled scaling state of Transformer Engine: empty without FP8, and found anew by a run with it.
    _, weights = extract_matching_values(qwen.sharded_state_dict(), lambda value: isinstance(value, ShardedObject))
    return named(weights, prefix)


def fill(model: torch.nn.Module, tensors: dict[str, Any], folder: Path) -> None:
    """Overwrites the weights of a bare model on this rank.

    Extra state of modules, which checkpoints do not hold, may be missing or surplus: Transformer Engine keeps scales
    and maxima of FP8 there, which start afresh. Nothing else may.

    Args:
        model: Overwritten.
        tensors: Its state by name, as read.
        folder: Where it was read, for the message.
    Raises:
        CheckpointError: naming the weights that are missing or surplus.
    """
    weights = {key: value for key, value in tensors.items() if not key.endswith(EXTRA_STATE)}
    result = model.load_state_dict(weights, strict=False)
    problems = [
        f"{problem} {', '.join(keys)}"
        for problem, found in (("lacks", result.missing_keys), ("has besides", result.unexpected_keys))
        if (keys := [key for key in found if not key.endswith(EXTRA_STATE)])
    ]
    if problems:
        raise CheckpointError(
            f"{folder}: does not fit this model: it {' and '.join(problems)}; use the checkpoint's architecture"
        )


def named(tensors: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The same tensors, with a prefix before their keys."""
    for shard in nested_values(tensors):
        if isinstance(shard, ShardedTensor | ShardedTensorFactory):
            shard.key = prefix + shard.key
    return tensors


def whole_shards(weights: dict[str, Any]) -> list[ShardedTensor]:
    """Shards of whole local weights, those that are several in one taken apart."""
    shards: list[ShardedTensor] = []
    for entry in nested_values(weights):
        parts = entry.build() if isinstance(entry, ShardedTensorFactory) else [entry]
        shards += [part for part in nested_values(parts) if isinstance(part, ShardedTensor)]
    for shard in shards:
        shard.data = shard.data.detach()
    return shards
