"""What a model is trained for: what an objective needs of the model, and the sum it makes of it."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from qwen_megatron.data.batch import Batch
from qwen_megatron.model.heads import HeadRequest, Output
from qwen_megatron.model.loss import summed_loss


@dataclass(frozen=True, kw_only=True)
class Sums:
    """What an objective finds in one micro-batch; sums, not means: a mean a micro-batch would weigh by layout.

    Attributes:
        total: Scalar fp32, minimised after division by the count of the whole batch.
        count: Scalar int32.
        metrics: Scalars by name, divided by the same count; the names are the objective's `metric_names`.
    """

    total: torch.Tensor
    count: torch.Tensor
    metrics: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Objective(abc.ABC):
    """What is minimised.

    Attributes:
        metric_names: Names of the metrics in their order, the same for every micro-batch: earlier pipeline stages are
            told the numbers without names.
    """

    metric_names: tuple[str, ...] = ()

    @abc.abstractmethod
    def request(self, batch: Batch) -> HeadRequest:
        """What the model's last stage is to return for a micro-batch; asked there, with what `measure` gets."""

    @abc.abstractmethod
    def measure(self, output: torch.Tensor, batch: Batch) -> Sums:
        """The sums of a micro-batch.

        Args:
            output: What was asked for; the same on all tensor-parallel ranks, and of this rank's part of the sequence.
            batch: With labels, loss mask and extras on the output's device.
        """


class NextTokenLoss(Objective):
    """Cross entropy of every label that the batch's mask counts, in nats a token."""

    def request(self, batch: Batch) -> HeadRequest:
        """Token losses; that their masked sum is minimised is promised."""
        return HeadRequest(output=Output.TOKEN_LOSSES, labels_bs=batch.labels_bs, loss_mask_bs=batch.loss_mask_bs)

    def measure(self, output: torch.Tensor, batch: Batch) -> Sums:
        total, count = summed_loss(output, batch.loss_mask_bs)
        return Sums(total=total, count=count)
