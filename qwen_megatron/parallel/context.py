"""Context parallelism: which part of a sequence a rank holds, and how the parts come together.

A sequence is cut into 2 * size slices; rank r holds slices r and 2 * size - 1 - r, one with few visible keys and one
with many, so that causal attention is balanced. Transformer Engine's ring attention expects the same order.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from qwen_megatron.platforms.comm_timer import comm_timer


def slice_numbers(group: dist.ProcessGroup) -> tuple[int, int]:
    """Numbers of the two slices this rank holds, in the order it holds them."""
    return group.rank(), 2 * group.size() - 1 - group.rank()


def take_slices(whole: torch.Tensor, dim: int, group: dist.ProcessGroup) -> torch.Tensor:
    """This rank's two slices of a sequence, one after the other.

    Args:
        whole: Any tensor whose axis `dim` is the sequence, a multiple of 2 * size long.
        dim: Axis of the sequence.
        group: Context-parallel group; of size one, `whole` is returned as it is.
    """
    if group.size() == 1:
        return whole
    slices = whole.chunk(2 * group.size(), dim=dim)
    return torch.cat([slices[number] for number in slice_numbers(group)], dim=dim)


def positions_of(
    count: int, group: dist.ProcessGroup, split_group: dist.ProcessGroup | None, device: torch.device
) -> torch.Tensor:
    """Places in the whole sequence of the tokens that this rank holds.

    Args:
        count: Tokens held.
        group: Context-parallel group.
        split_group: Tensor-parallel group where sequence parallelism splits its slices further; None where not.
        device: Of the result.
    Returns:
        int64 [count].
    """
    parts = 1 if split_group is None else split_group.size()
    whole = torch.arange(count * parts * group.size(), device=device)
    held = take_slices(whole, 0, group)
    return held if split_group is None else held.chunk(parts)[split_group.rank()]


class GatherSequence(torch.autograd.Function):
    """Every rank's slices in their natural order; in the backward pass each rank gets the sum for its own."""

    @staticmethod
    def forward(ctx: Any, part: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        """[s / size, ...] to [s, ...]."""
        ctx.group = group
        size = group.size()
        gathered = torch.empty((size, *part.shape), dtype=part.dtype, device=part.device)
        with comm_timer():
            dist.all_gather_into_tensor(gathered.flatten(0, 1), part.contiguous(), group=group)
        halves = gathered.unflatten(1, (2, part.size(0) // 2))
        # Rank r's first half is slice r; second halves come in reverse.
        return torch.cat((halves[:, 0].flatten(0, 1), halves[:, 1].flip(0).flatten(0, 1)))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        """[s, ...] to [s / size, ...]."""
        size = ctx.group.size()
        first, second = gradient.unflatten(0, (2, size, gradient.size(0) // (2 * size)))
        ranked = torch.stack((first, second.flip(0)), dim=1).flatten(0, 2).contiguous()
        part = torch.empty(
            (gradient.size(0) // size, *gradient.shape[1:]), dtype=gradient.dtype, device=gradient.device
        )
        with comm_timer():
            dist.reduce_scatter_tensor(part, ranked, group=ctx.group)
        return part, None
