"""What each rank owns of weights and optimizer state, as rectangles of global tensors.

The distributed optimizer gives every replica a flat range of its buffers, and so of each weight a flat range
[start, stop). A flat range of a matrix is at most three rectangles: the end of a row, whole rows, the beginning of a
row. Rectangles are what torch.distributed.checkpoint stores and reshards, so every rank writes what it owns, and reads
into the memory it owns, without talking to the others and on any layout.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

Rectangle = tuple[tuple[int, ...], tuple[int, ...]]


def rectangles(shape: Sequence[int], start: int, stop: int) -> list[Rectangle]:
    """Cuts the elements [start, stop) of a tensor in row-major order into rectangles, in this order.

    Args:
        shape: Of the tensor, at least one axis.
        start, stop: Flat positions.
    Returns:
        (offset, size) of each rectangle; at most 2 x axes - 1.
    """
    if start >= stop:
        return []
    if len(shape) == 1:
        return [((start,), (stop - start,))]
    row = math.prod(shape[1:])
    first, last = -(-start // row), stop // row
    if first > last:
        # Inside of one row.
        return [within(last, r) for r in rectangles(shape[1:], start - last * row, stop - last * row)]
    before = [within(first - 1, r) for r in rectangles(shape[1:], start - (first - 1) * row, row)] if first else []
    whole = [((first, *(0 for _ in shape[1:])), (last - first, *shape[1:]))] if last > first else []
    after = [within(last, r) for r in rectangles(shape[1:], 0, stop - last * row)]
    return [*before, *whole, *after]


def within(index: int, rectangle: Rectangle) -> Rectangle:
    """A rectangle of row `index`, as a rectangle of the whole."""
    offset, size = rectangle
    return (index, *offset), (1, *size)


def owned_tensors(optimizer: DistributedOptimizer, sharded: Any, *, weights: bool) -> dict[str, ShardedTensor]:
    """The optimizer state that this rank owns, and the same part of the weights; views of the memory in use.

    Args:
        optimizer: Of the whole model on this rank.
        sharded: Megatron-Core's sharded state dict of the model, whose entries hold the parameters themselves.
        weights: With the weights. They are up to date here even if overlap_param_gather has not brought them to the
            other ranks yet.
    Returns:
        By a name that is unique on this rank; the key inside is the global tensor's.
    """
    entries = {entry.data: entry for entry in nested_values(sharded)}
    owned: dict[str, ShardedTensor] = {}
    for parameter, start, stop in owned_ranges(optimizer):
        entry = entries[parameter]
        state = optimizer._get_main_param_and_optimizer_states(parameter)
        flat = {f"optimizer.state.{name}.": values for name, values in state.items() if name != "step"}
        if weights:
            flat[""] = parameter.detach().flatten()[start:stop]
        for prefix, values in flat.items():
            for piece in cut(entry, prefix, values, start, stop):
                owned[f"{piece.key} {piece.global_offset}"] = piece
    return owned


def owned_ranges(optimizer: DistributedOptimizer) -> Iterator[tuple[torch.nn.Parameter, int, int]]:
    """(parameter, start, stop): the flat range of each parameter that this rank updates."""
    for maps in optimizer.gbuf_ranges:
        for buckets in maps.values():
            for bucket in buckets:
                for parameter, ranges in bucket["param_map"].items():
                    yield parameter, ranges["param"].start, ranges["param"].end


def cut(
    entry: ShardedTensor | ShardedTensorFactory, prefix: str, values: torch.Tensor, start: int, stop: int
) -> Iterator[ShardedTensor]:
    """Rectangles of the elements [start, stop) of a parameter.

    Args:
        entry: Where the parameter stands in global tensors.
        prefix: Before its key.
        values: [stop - start], contiguous.
    """
    # A factory cuts the parameter into parts with places of their own: gate and up projection.
    parts = entry.build() if isinstance(entry, ShardedTensorFactory) else [entry]
    for part in nested_values(parts):
        begin = part.data.storage_offset() - entry.data.storage_offset()
        low, high = max(start, begin), min(stop, begin + part.data.numel())
        axes = len(part.global_shape) - part.data.ndim
        taken = low - start
        for offset, size in rectangles(part.data.shape, low - begin, high - begin):
            count = math.prod(size)
            place = (*(0 for _ in range(axes)), *offset)
            local_shape = (*(1 for _ in range(axes)), *size)
            yield ShardedTensor(
                key=prefix + part.key,
                data=values[taken : taken + count].view(local_shape),
                dtype=values.dtype,
                local_shape=local_shape,
                global_shape=part.global_shape,
                global_offset=tuple(a + b for a, b in zip(part.global_offset, place, strict=True)),
                axis_fragmentations=None,
                # Of the replicas, each writes its own part.
                replica_id=(*part.replica_id[:2], 0),
                allow_shape_mismatch=part.allow_shape_mismatch,
            )
            taken += count
