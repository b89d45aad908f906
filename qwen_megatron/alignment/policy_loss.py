"""The policy's objective: PPO's clipped surrogate, and next-token loss on pretraining text in the same step.

Legend: b micro-batch, s positions; position t belongs to the action that comes after it, token t + 1.
"""

from __future__ import annotations

import torch

from qwen_megatron.alignment.experience import is_pretraining
from qwen_megatron.data.batch import Batch
from qwen_megatron.model.heads import HeadRequest, Output
from qwen_megatron.train.objective import Objective, Sums


class PolicyLoss(Objective):
    """-min(ratio A, clip(ratio, 1 - c, 1 + c) A), a mean over the actions of the whole minibatch.

    Micro-batches of pretraining text go through the same step. They count nothing, and their loss mask holds
    coefficient x actions / tokens instead of 1 (`experience.weighed`): the sum of everything, divided by the number of
    actions, is then the mean over actions + coefficient x the mean over tokens, however the step is cut into
    micro-batches and replicas. As a mask and not as a factor, because the fused loss has its gradient before a factor
    could reach it.

    Args:
        clip_range: c.
        pretraining_coefficient: Weight of the loss on pretraining text.
    Source: Schulman et al. 2017 (arXiv 1707.06347), equation 7; Ouyang et al. 2022 (arXiv 2203.02155), equation 2.
    """

    metric_names = ("clip_share", "ratio", "approximate_kl", "pretraining_loss")

    def __init__(self, *, clip_range: float, pretraining_coefficient: float = 0.0):
        self.clip_range = clip_range
        self.pretraining_coefficient = pretraining_coefficient

    def request(self, batch: Batch) -> HeadRequest:
        """Log-probabilities of the actions; of pretraining text token losses."""
        if is_pretraining(batch):
            return HeadRequest(output=Output.TOKEN_LOSSES, labels_bs=batch.labels_bs, loss_mask_bs=batch.loss_mask_bs)
        return actions_of(batch)

    def measure(self, output: torch.Tensor, batch: Batch) -> Sums:
        mask_bs = batch.loss_mask_bs
        nothing = torch.zeros((), device=output.device)
        if is_pretraining(batch):
            total = (output * mask_bs).sum()
            metrics = dict.fromkeys(self.metric_names, nothing)
            metrics["pretraining_loss"] = total / self.pretraining_coefficient
            return Sums(total=total, count=nothing.to(torch.int32), metrics=metrics)
        old_bs = batch.extras["log_probabilities_bs"]
        advantages_bs = batch.extras["advantages_bs"]
        # Both are 0 at other positions, and so is the advantage.
        difference_bs = output - old_bs
        ratio_bs = difference_bs.exp()
        clipped_bs = ratio_bs.clamp(1.0 - self.clip_range, 1.0 + self.clip_range)
        surrogate_bs = torch.minimum(ratio_bs * advantages_bs, clipped_bs * advantages_bs)
        return Sums(
            total=-(surrogate_bs * mask_bs).sum(),
            count=mask_bs.sum().to(torch.int32),
            metrics={
                "clip_share": ((ratio_bs != clipped_bs) * mask_bs).sum(),
                "ratio": (ratio_bs * mask_bs).sum(),
                # Never negative, and of little variance (Schulman 2020, "Approximating KL Divergence").
                "approximate_kl": ((ratio_bs - 1.0 - difference_bs) * mask_bs).sum(),
                "pretraining_loss": nothing,
            },
        )


def actions_of(batch: Batch, *, with_entropies: bool = False) -> HeadRequest:
    """The log-probabilities of a micro-batch's actions, and nothing of other positions.

    Args:
        batch: Its loss mask says which labels are actions.
        with_entropies: The entropies of the distributions they were drawn from, too; then there is no gradient.
    """
    return HeadRequest(
        output=Output.LOG_PROBABILITIES_AND_ENTROPIES if with_entropies else Output.LOG_PROBABILITIES,
        labels_bs=batch.labels_bs,
        positions_bs=batch.loss_mask_bs > 0,
    )
