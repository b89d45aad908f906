"""Next-token loss over a vocabulary that tensor parallelism splits.

Legend: s sequence, b micro-batch, n tokens (s * b), h hidden, v vocabulary rows, padded so that every tensor-parallel
rank has as many.

`head_cross_entropy` takes output layer and cross entropy together, a block of tokens at a time, and computes gradients
in the forward pass: no [n, v] tensor is ever whole, and logits are made once. A block's logits are overwritten by
e = exp(logit - row maximum); the division by the row's sum is put off to the [n, h] side of the two gradient products,
and the -1 at the label is written as -sum into e. Source: Wijmans et al. 2024 (arXiv 2411.09009) for the idea of never
keeping the logits; the order of work is our own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel.mappings import (
    gather_from_sequence_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)

from qwen_megatron.model.main_grad import accumulated
from qwen_megatron.platforms.comm_timer import comm_timer
from qwen_megatron.platforms.device_checks import require
from qwen_megatron.platforms.vocabulary import (
    add_weight_gradient,
    block_tokens,
    counted_rows,
    exponentiate,
    logits_buffer,
)

# exp(-60) is far below what fp32 can add to 1; 1 / exp(-60) can still be held.
NEGLIGIBLE_EXPONENT = 60.0


@dataclass(frozen=True, kw_only=True)
class VocabularyShard:
    """The vocabulary rows of one tensor-parallel rank.

    Attributes:
        vocab_size: Rows of the whole vocabulary without padding.
        rows: Rows on every rank, padding included.
        tp_group: Tensor-parallel group, in the order of the rows.
    """

    vocab_size: int
    rows: int
    tp_group: dist.ProcessGroup

    @property
    def first(self) -> int:
        """Number of this rank's first row in the whole vocabulary."""
        return self.tp_group.rank() * self.rows

    @property
    def num_valid(self) -> int:
        """Rows on this rank that are no padding."""
        return min(max(self.vocab_size - self.first, 0), self.rows)


def mask_padded_vocabulary(logits_sbv: torch.Tensor, vocab_size: int, tp_group: dist.ProcessGroup) -> None:
    """Sets the logits of rows beyond the vocabulary to minus infinity, in place.

    Args:
        logits_sbv: [s, b, v / tp], this rank's rows.
        vocab_size: Rows of the vocabulary without padding.
        tp_group: Tensor-parallel group, in the order of the rows.
    """
    shard = VocabularyShard(vocab_size=vocab_size, rows=logits_sbv.size(-1), tp_group=tp_group)
    if shard.num_valid < shard.rows:
        logits_sbv[..., shard.num_valid :] = -torch.inf


def summed_loss(losses_bs: torch.Tensor, loss_mask_bs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of the losses that count, and how many do.

    Args:
        losses_bs: [b, s] fp32, nats per token.
        loss_mask_bs: [b, s] fp32, 1 where the label counts.
    Returns:
        Scalar fp32 sum and scalar int32 count. Sums, not means: a mean per micro-batch would weigh tokens by layout.
    """
    return (losses_bs.float() * loss_mask_bs).sum(), loss_mask_bs.sum().to(torch.int32)


def head_cross_entropy(
    hidden_sbh: torch.Tensor,
    weight_vh: torch.Tensor,
    labels_sb: torch.Tensor,
    loss_mask_sb: torch.Tensor,
    shard: VocabularyShard,
    *,
    sequence_parallel: bool = False,
) -> torch.Tensor:
    """Vocabulary-parallel output layer and cross entropy of next-token labels.

    The backward pass is right for the sum of losses times `loss_mask_sb`, times one number; for others it raises. The
    weight's gradient goes straight into `weight.main_grad` where there is one (fp32, Megatron-Core's data-parallel
    wrapper), already in the forward pass.

    Args:
        hidden_sbh: [s, b, h] bf16 or fp32, the last layer's output; [s / tp, b, h] under sequence parallelism.
        weight_vh: [v / tp, h], this rank's rows of the output layer.
        labels_sb: [s, b] int64 token ids in the whole vocabulary; any value where the mask is 0.
        loss_mask_sb: [s, b] fp32 factor of each token's loss.
        shard: Which rows those are.
        sequence_parallel: The tensor-parallel ranks hold one part of the sequence each.
    Returns:
        [s, b] fp32 loss in nats per token, 0 where the mask is 0, NaN where a counted label is not in the vocabulary.
    """
    arguments = (hidden_sbh, weight_vh, labels_sb, loss_mask_sb, shard, sequence_parallel)
    if torch.is_grad_enabled() and (hidden_sbh.requires_grad or weight_vh.requires_grad):
        return HeadCrossEntropy.apply(*arguments)
    hidden_nh = whole_sequence(hidden_sbh, shard.tp_group, sequence_parallel).flatten(0, 1)
    losses = masked_cross_entropy(hidden_nh, weight_vh, labels_sb.flatten(), loss_mask_sb.flatten(), shard, None, None)
    return losses.view_as(loss_mask_sb)


class HeadCrossEntropy(torch.autograd.Function):
    """`head_cross_entropy` with gradients: all of the work is in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_sbh: torch.Tensor,
        weight_vh: torch.Tensor,
        labels_sb: torch.Tensor,
        loss_mask_sb: torch.Tensor,
        shard: VocabularyShard,
        sequence_parallel: bool,
    ) -> torch.Tensor:
        whole = whole_sequence(hidden_sbh, shard.tp_group, sequence_parallel)
        grad_hidden = torch.empty_like(whole) if ctx.needs_input_grad[0] else None
        ctx.accumulates = hasattr(weight_vh, "main_grad")
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = getattr(weight_vh, "main_grad", None)
            if grad_weight is None:
                grad_weight = torch.zeros_like(weight_vh, dtype=torch.float32)
        losses = masked_cross_entropy(
            whole.flatten(0, 1),
            weight_vh,
            labels_sb.flatten(),
            loss_mask_sb.flatten(),
            shard,
            None if grad_hidden is None else grad_hidden.view(-1, grad_hidden.size(-1)),
            grad_weight,
        )
        if grad_hidden is not None and shard.tp_group.size() > 1:
            if sequence_parallel:
                grad_hidden = reduce_scatter_to_sequence_parallel_region(grad_hidden, group=shard.tp_group)
            else:
                with comm_timer():
                    dist.all_reduce(grad_hidden, group=shard.tp_group)
        ctx.save_for_backward(grad_hidden, None if ctx.accumulates else grad_weight, loss_mask_sb)
        ctx.weight = weight_vh
        return losses.view_as(loss_mask_sb)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_hidden, grad_weight, loss_mask_sb = ctx.saved_tensors
        scale = common_factor(grad_outputs[0], loss_mask_sb)
        if ctx.accumulates and ctx.needs_input_grad[1]:
            require(
                scale == 1.0,
                lambda: (
                    f"the summed loss was multiplied by {scale.item()} after its gradient had been added to the "
                    "weight's; use model.loss_implementation=unfused for a scaled loss"
                ),
            )
            # The lookup in a tied matrix has a gradient too, which autograd hands out: nothing is added to it.
            tied = getattr(ctx.weight, "zero_out_wgrad", False)
            return grad_hidden, None if tied else accumulated(ctx.weight), None, None, None, None
        if grad_weight is not None:
            grad_weight = (grad_weight * scale).to(ctx.weight.dtype)
        if grad_hidden is not None:
            grad_hidden = (grad_hidden.float() * scale).to(grad_hidden.dtype)
        return grad_hidden, grad_weight, None, None, None, None


def common_factor(grad_sb: torch.Tensor, loss_mask_sb: torch.Tensor) -> torch.Tensor:
    """The number c with grad = c * mask, 1 where the mask is 0: a scalar on the device, which nobody waits for.

    Raises:
        RuntimeError: if there is none: the loss is not the masked sum. On a GPU the process ends later, see `require`.
    """
    grad, mask = grad_sb.flatten(), loss_mask_sb.flatten()
    place = mask.abs().argmax(keepdim=True)
    largest = mask.gather(0, place)[0]
    scale = torch.where(largest == 0, 1.0, grad.gather(0, place)[0] / largest)
    require(
        (grad == mask * scale).all(),
        lambda: (
            f"the gradient of the losses is not loss_mask times one number (at the largest, {largest.item()}, that "
            f"would be {scale.item()}); use model.loss_implementation=unfused for a loss that weighs tokens otherwise"
        ),
    )
    return scale


def whole_sequence(hidden_sbh: torch.Tensor, tp_group: dist.ProcessGroup, sequence_parallel: bool) -> torch.Tensor:
    """[s, b, h] on every tensor-parallel rank."""
    if sequence_parallel and tp_group.size() > 1:
        return gather_from_sequence_parallel_region(hidden_sbh, group=tp_group)
    return hidden_sbh


@torch.no_grad()
def masked_cross_entropy(
    hidden_nh: torch.Tensor,
    weight_vh: torch.Tensor,
    labels_n: torch.Tensor,
    loss_mask_n: torch.Tensor,
    shard: VocabularyShard,
    grad_hidden_nh: torch.Tensor | None,
    grad_weight_vh: torch.Tensor | None,
) -> torch.Tensor:
    """`blockwise_cross_entropy`, for which tokens that do not count are left out where that is worth it."""
    rows = counted_rows(loss_mask_n)
    if rows is None:
        return blockwise_cross_entropy(
            hidden_nh, weight_vh, labels_n, loss_mask_n, shard, grad_hidden_nh, grad_weight_vh
        )
    grad_rows = None if grad_hidden_nh is None else hidden_nh.new_empty(len(rows), hidden_nh.size(1))
    losses_n = torch.zeros_like(loss_mask_n)
    if len(rows):
        losses_n[rows] = blockwise_cross_entropy(
            hidden_nh[rows], weight_vh, labels_n[rows], loss_mask_n[rows], shard, grad_rows, grad_weight_vh
        )
    if grad_hidden_nh is not None and grad_rows is not None:
        grad_hidden_nh.zero_()
        grad_hidden_nh[rows] = grad_rows
    return losses_n


@torch.no_grad()
def blockwise_cross_entropy(
    hidden_nh: torch.Tensor,
    weight_vh: torch.Tensor,
    labels_n: torch.Tensor,
    loss_mask_n: torch.Tensor,
    shard: VocabularyShard,
    grad_hidden_nh: torch.Tensor | None,
    grad_weight_vh: torch.Tensor | None,
) -> torch.Tensor:
    """Losses, and gradients of the masked sum where a place for them is given.

    Args:
        hidden_nh: [n, h], the same on all tensor-parallel ranks.
        weight_vh: [v / tp, h].
        labels_n: [n] int64.
        loss_mask_n: [n] fp32.
        shard: Rows of the weight.
        grad_hidden_nh: [n, h], overwritten by this rank's part of the gradient, to be summed over the group.
        grad_weight_vh: [v / tp, h] fp32, added to.
    Returns:
        [n] fp32, as from `head_cross_entropy`.
    """
    weight_vh = weight_vh[: shard.num_valid]
    step = min(block_tokens(weight_vh), len(hidden_nh))
    logits = logits_buffer(step, shard.num_valid, weight_vh)
    losses = []
    for start in range(0, len(hidden_nh), step):
        stop = min(start + step, len(hidden_nh))
        hidden, labels, mask = hidden_nh[start:stop], labels_n[start:stop], loss_mask_n[start:stop]
        block = logits[: stop - start]
        torch.mm(hidden, weight_vh.t(), out=block)
        loss, factor = softmax_residual(block, labels, mask, shard)
        losses.append(loss)
        if grad_hidden_nh is not None:
            grad_hidden_nh[start:stop] = torch.mm(block, weight_vh) * factor[:, None]
        if grad_weight_vh is not None:
            add_weight_gradient(grad_weight_vh[: shard.num_valid], block, (hidden * factor[:, None]).to(hidden.dtype))
    return torch.cat(losses)


def softmax_residual(
    logits_nv: torch.Tensor, labels_n: torch.Tensor, loss_mask_n: torch.Tensor, shard: VocabularyShard
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses of a block; its logits become the gradient of the masked sum, up to a factor for each row.

    Args:
        logits_nv: [n, v / tp] without padding, overwritten.
        labels_n: [n] int64 in the whole vocabulary.
        loss_mask_n: [n] fp32.
        shard: Rows of the logits.
    Returns:
        [n] fp32 losses, and [n] fp32 factors: gradient = logits_nv * factors.
    """
    local = labels_n - shard.first
    # fp32 as a mask to multiply with: no index of varying size, which a GPU would have to wait for.
    here = (local >= 0) & (local < shard.num_valid)
    place = local.clamp(0, max(shard.num_valid - 1, 0))[:, None]
    label_logit = torch.zeros_like(loss_mask_n)
    if shard.num_valid:
        label_logit = torch.where(here, logits_nv.gather(1, place)[:, 0].float(), 0.0)
    highest, total = exponentiate(logits_nv)
    overall, behind = highest, torch.zeros_like(highest)
    if shard.tp_group.size() > 1:
        overall = highest.clone()
        with comm_timer():
            dist.all_reduce(overall, op=dist.ReduceOp.MAX, group=shard.tp_group)
        behind = overall - highest
        sums = torch.stack((total * torch.exp(-behind), label_logit))
        with comm_timer():
            dist.all_reduce(sums, group=shard.tp_group)
        total, label_logit = sums
    loss = overall + total.log() - label_logit
    loss = loss.masked_fill((labels_n < 0) | (labels_n >= shard.vocab_size), torch.nan)
    if not shard.num_valid:
        return loss.masked_fill(loss_mask_n == 0, 0.0), torch.zeros_like(loss)
    # Where this rank's logits are so low that their probabilities vanish, only the label's -1 is left.
    vanishing = behind > NEGLIGIBLE_EXPONENT
    if shard.tp_group.size() > 1:
        logits_nv.masked_fill_(vanishing[:, None], 0.0)
    one = torch.where(vanishing, 1.0, total * torch.exp(behind.clamp(max=NEGLIGIBLE_EXPONENT)))
    residual = logits_nv.gather(1, place)[:, 0] - torch.where(here, one, 0.0)
    row = torch.arange(len(place), device=place.device)
    logits_nv[row, place[:, 0]] = residual.to(logits_nv.dtype)
    return loss.masked_fill(loss_mask_n == 0, 0.0), loss_mask_n / one
