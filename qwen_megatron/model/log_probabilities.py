"""Log-probabilities of chosen labels, through the output layer, without whole logits.

Legend: s sequence, b micro-batch, n chosen tokens, h hidden, v vocabulary rows.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)

from qwen_megatron.model.loss import VocabularyShard, blockwise_cross_entropy
from qwen_megatron.model.main_grad import accumulated
from qwen_megatron.platforms.comm_timer import comm_timer
from qwen_megatron.platforms.vocabulary import block_tokens


def head_log_probabilities(
    hidden_sbh: torch.Tensor,
    weight_vh: torch.Tensor,
    labels_bs: torch.Tensor,
    positions_bs: torch.Tensor,
    shard: VocabularyShard,
    *,
    sequence_parallel: bool = False,
) -> torch.Tensor:
    """Vocabulary-parallel output layer and log-softmax at chosen positions; any gradient may come back.

    Logits are made a block of tokens at a time, forward and, again, backward, where the gradient of each
    log-probability is known: it takes the place of the loss mask in `model.loss.blockwise_cross_entropy`.

    Args:
        hidden_sbh: [s, b, h] bf16 or fp32, the last layer's output; [s / tp, b, h] under sequence parallelism.
        weight_vh: [v / tp, h], this rank's rows of the output layer.
        labels_bs: [b, s] int64 in the whole vocabulary; any value at other positions.
        positions_bs: [b, s] bool.
        shard: Which rows those are.
        sequence_parallel: The tensor-parallel ranks hold one part of the sequence each.
    Returns:
        [b, s] fp32, 0 at other positions, NaN where a label is not in the vocabulary.
    """
    whole_bsh = whole_rows(hidden_sbh, shard, sequence_parallel=sequence_parallel)
    chosen_nh = whole_bsh[positions_bs]
    values_n = ChosenLogProbabilities.apply(chosen_nh, weight_vh, labels_bs[positions_bs], shard)
    return torch.zeros_like(positions_bs, dtype=torch.float32).masked_scatter(positions_bs, values_n)


def whole_rows(hidden_sbh: torch.Tensor, shard: VocabularyShard, *, sequence_parallel: bool) -> torch.Tensor:
    """[b, s, h] on every tensor-parallel rank, whose gradients are summed on the way back."""
    if sequence_parallel and shard.tp_group.size() > 1:
        return gather_from_sequence_parallel_region(hidden_sbh, group=shard.tp_group).transpose(0, 1)
    # Of the transposed states: Megatron-Core 0.16 reduces a copy of a gradient that is not contiguous, and gives back
    # the original.
    return copy_to_tensor_model_parallel_region(hidden_sbh.transpose(0, 1), group=shard.tp_group)


@torch.no_grad()
def head_entropies(
    hidden_sbh: torch.Tensor,
    weight_vh: torch.Tensor,
    positions_bs: torch.Tensor,
    shard: VocabularyShard,
    *,
    sequence_parallel: bool = False,
) -> torch.Tensor:
    """Entropy of the next token's distribution at chosen positions, in nats: log sum exp(z) - sum p z of logits z.

    It has logits of its own, a block of tokens at a time: those of a loss are overwritten while it is computed.

    Args:
        hidden_sbh, weight_vh, positions_bs, shard, sequence_parallel: As of `head_log_probabilities`.
    Returns:
        [b, s] fp32, 0 at other positions.
    """
    chosen_nh = whole_rows(hidden_sbh, shard, sequence_parallel=sequence_parallel)[positions_bs]
    weight_vh = weight_vh[: shard.num_valid]
    entropies = [hidden_sbh.new_zeros(0, dtype=torch.float32)]
    for hidden_nh in chosen_nh.split(block_tokens(weight_vh)) if len(chosen_nh) else ():
        logits_nv = torch.mm(hidden_nh, weight_vh.t()).float()
        highest_n = logits_nv.amax(dim=1) if shard.num_valid else logits_nv.new_full((len(logits_nv),), -torch.inf)
        if shard.tp_group.size() > 1:
            with comm_timer():
                dist.all_reduce(highest_n, op=dist.ReduceOp.MAX, group=shard.tp_group)
        logits_nv -= highest_n[:, None]
        weights_nv = logits_nv.exp()
        sums = torch.stack((weights_nv.sum(dim=1), (weights_nv * logits_nv).sum(dim=1)))
        if shard.tp_group.size() > 1:
            with comm_timer():
                dist.all_reduce(sums, group=shard.tp_group)
        entropies.append(sums[0].log() - sums[1] / sums[0])
    return torch.zeros_like(positions_bs, dtype=torch.float32).masked_scatter(positions_bs, torch.cat(entropies))


class ChosenLogProbabilities(torch.autograd.Function):
    """log p(label) of each row; its backward pass makes the logits again."""

    @staticmethod
    def forward(
        ctx: Any, hidden_nh: torch.Tensor, weight_vh: torch.Tensor, labels_n: torch.Tensor, shard: VocabularyShard
    ) -> torch.Tensor:
        ctx.save_for_backward(hidden_nh, labels_n)
        ctx.weight, ctx.shard = weight_vh, shard
        if not len(hidden_nh):
            return hidden_nh.new_zeros(0, dtype=torch.float32)
        everywhere = torch.ones_like(labels_n, dtype=torch.float32)
        return -blockwise_cross_entropy(hidden_nh, weight_vh, labels_n, everywhere, shard, None, None)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_nh, labels_n = ctx.saved_tensors
        weight_vh = ctx.weight
        grad_hidden = torch.zeros_like(hidden_nh) if ctx.needs_input_grad[0] else None
        accumulates = hasattr(weight_vh, "main_grad")
        main_grad = None
        if ctx.needs_input_grad[1]:
            main_grad = weight_vh.main_grad if accumulates else torch.zeros_like(weight_vh, dtype=torch.float32)
        if len(hidden_nh):
            factors_n = -grad_outputs[0].float()
            blockwise_cross_entropy(hidden_nh, weight_vh, labels_n, factors_n, ctx.shard, grad_hidden, main_grad)
        if main_grad is None:
            return grad_hidden, None, None, None
        if not accumulates:
            return grad_hidden, main_grad.to(weight_vh.dtype), None, None
        # The lookup in a tied matrix has a gradient too, which autograd hands out: nothing is added to it.
        tied = getattr(weight_vh, "zero_out_wgrad", False)
        return grad_hidden, None if tied else accumulated(weight_vh), None, None
