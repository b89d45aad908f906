"""Next-token loss over a vocabulary that tensor parallelism splits.

Legend: s sequence, b micro-batch, v vocabulary rows, padded so that every tensor-parallel rank has as many.
"""

from __future__ import annotations

import torch
import torch.distributed as dist


def mask_padded_vocabulary(logits_sbv: torch.Tensor, vocab_size: int, tp_group: dist.ProcessGroup) -> None:
    """Sets the logits of rows beyond the vocabulary to minus infinity, in place.

    Args:
        logits_sbv: [s, b, v / tp], this rank's rows.
        vocab_size: Rows of the vocabulary without padding.
        tp_group: Tensor-parallel group, in the order of the rows.
    """
    rows = logits_sbv.size(-1)
    valid = min(max(vocab_size - tp_group.rank() * rows, 0), rows)
    if valid < rows:
        logits_sbv[..., valid:] = -torch.inf


def summed_loss(losses_bs: torch.Tensor, loss_mask_bs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of the losses that count, and how many do.

    Args:
        losses_bs: [b, s] fp32, nats per token.
        loss_mask_bs: [b, s] fp32, 1 where the label counts.
    Returns:
        Scalar fp32 sum and scalar int32 count. Sums, not means: a mean per micro-batch would weigh tokens by layout.
    """
    return (losses_bs.float() * loss_mask_bs).sum(), loss_mask_bs.sum().to(torch.int32)
