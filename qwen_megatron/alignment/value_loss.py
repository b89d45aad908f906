"""The value model's objective.

Legend: b micro-batch, s positions; position t belongs to the action that comes after it, token t + 1.
"""

from __future__ import annotations

import torch

from qwen_megatron.data.batch import Batch
from qwen_megatron.model.heads import HeadRequest, Output
from qwen_megatron.train.objective import Objective, Sums


class ValueLoss(Objective):
    """Half the squared distance from the returns, a mean over actions; values move by at most the clip a batch.

    max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2) / 2

    Args:
        clip_range: c; the paper's is 0.15.
    Source: Qwen Technical Report, section 3.2.2, for the clip; Stiennon et al. 2020 (arXiv 2009.01325) for values of
        PPO on texts.
    """

    metric_names = ("value_clip_share", "value_error")

    def __init__(self, *, clip_range: float):
        self.clip_range = clip_range

    def request(self, batch: Batch) -> HeadRequest:
        return HeadRequest(output=Output.SCALARS)

    def measure(self, output: torch.Tensor, batch: Batch) -> Sums:
        mask_bs = batch.loss_mask_bs
        old_bs, returns_bs = (batch.extras[name] for name in ("values_bs", "returns_bs"))
        near_bs = torch.clamp(output, old_bs - self.clip_range, old_bs + self.clip_range)
        distance_bs, clipped_bs = (output - returns_bs).square(), (near_bs - returns_bs).square()
        return Sums(
            total=0.5 * (torch.maximum(distance_bs, clipped_bs) * mask_bs).sum(),
            count=mask_bs.sum().to(torch.int32),
            metrics={
                "value_clip_share": ((clipped_bs > distance_bs) * mask_bs).sum(),
                "value_error": ((output - returns_bs).abs() * mask_bs).sum(),
            },
        )
