"""Frozen models that take turns in one place of the device, their weights waiting in the host's memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from qwen_megatron.train.trainable import Trainable


class SharedPlace:
    """Memory of the device for the largest of several frozen models; one of them is there at a time.

    A copy from pinned memory costs 2 bytes a parameter over the bus for each change, twice a step.

    Args:
        trainables: Without optimizers, on one layout and in one precision. Their weights move to the host.
    """

    def __init__(self, trainables: Sequence[Trainable]):
        self.weights = {
            one.name: [weight for model in one.models for weight in model.parameters()] for one in trainables
        }
        self.waiting = {name: packed(weights) for name, weights in self.weights.items()}
        device = trainables[0].groups.device
        largest = max(self.waiting.values(), key=len)
        self.place = torch.empty(len(largest), dtype=largest.dtype, device=device)
        self.present: str | None = None
        # What the models held is given up.
        self.point()

    def bring(self, trainable: Trainable) -> None:
        """Makes a model's weights be there; the others' are then not to be asked."""
        if self.present != trainable.name:
            waiting = self.waiting[trainable.name]
            self.place[: len(waiting)].copy_(waiting, non_blocking=True)
            self.present = trainable.name

    def point(self) -> None:
        """Lets the weights of all models lie in the one place."""
        for weights in self.weights.values():
            start = 0
            for weight in weights:
                weight.data = self.place[start : start + weight.numel()].view(weight.shape)
                start += weight.numel()


def packed(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """The weights one after the other in the host's memory, pinned where there is a device to copy to."""
    together = torch.cat([weight.detach().flatten().cpu() for weight in weights])
    return together.pin_memory() if weights[0].device.type == "cuda" else together
