"""Log-probabilities of chosen labels, through the output layer, without whole logits.

Legend: s sequence, b micro-batch, n chosen tokens, h hidden, v vocabulary rows.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)

from qwen_megatron.model.loss import VocabularyShard, blockwise_cross_entropy
from qwen_megatron.model.main_grad import accumulated


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
    if sequence_parallel and shard.tp_group.size() > 1:
        whole_bsh = gather_from_sequence_parallel_region(hidden_sbh, group=shard.tp_group).transpose(0, 1)
    else:
        # Of the transposed states: Megatron-Core 0.16 reduces a copy of a gradient that is not contiguous, and gives
        # back the original.
        whole_bsh = copy_to_tensor_model_parallel_region(hidden_sbh.transpose(0, 1), group=shard.tp_group)
    chosen_nh = whole_bsh[positions_bs]
    values_n = ChosenLogProbabilities.apply(chosen_nh, weight_vh, labels_bs[positions_bs], shard)
    return torch.zeros_like(positions_bs, dtype=torch.float32).masked_scatter(positions_bs, values_n)


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
