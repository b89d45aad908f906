"""Whether tensors hold numbers."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch

from qwen_megatron.errors import NonFiniteError, TrainingError
from qwen_megatron.train.step_guard import agreed
from qwen_megatron.train.trainable import Trainable


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor has neither NaN nor infinity.

    Its least and greatest value say so, in one pass and without the mask of `torch.isfinite`, which takes thirty times
    as long on a CPU.
    """
    if not tensor.numel():
        return True
    low, high = torch.aminmax(tensor.detach())
    return math.isfinite(low.item()) and math.isfinite(high.item())


def check_evaluation(trainables: Collection[Trainable], step: int, loss: float) -> None:
    """Refuses an evaluation whose loss is no number; collective if it is none, which all ranks know alike.

    Raises:
        NonFiniteError: a weight is no number, on whichever rank: the checkpoint before is still good.
        TrainingError: all weights are numbers, so the same start would come to the same loss.
    """
    if math.isfinite(loss):
        return
    told = f"step {step}: the loss of the evaluation is {loss}"
    models = [model for trainable in trainables for model in trainable.models]
    sound = all(all_finite(weight) for model in models for weight in model.parameters())
    trainable = next(iter(trainables))
    if not agreed(trainable, torch.tensor(sound, device=trainable.groups.device)).item():
        raise NonFiniteError(f"{told}, for weights hold NaN or infinity; start again from the checkpoint before it")
    raise TrainingError(f"{told}, though all weights are finite; lower optimizer.lr or look at the held-out samples")
