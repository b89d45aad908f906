"""Whether a step's gradient may change the weights: decided before the update, the same on every rank."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from qwen_megatron.errors import TrainingError
from qwen_megatron.parallel.objects import all_gather, list_of, of_type
from qwen_megatron.platforms.norms import sum_of_squares
from qwen_megatron.train.trainable import Trainable

# Losses that a spike is compared with, and how many there must be.
WINDOW = 64
FEWEST = 16
# The median of absolute deviations of normal noise, times this, is its standard deviation.
SIGMA_OF_DEVIATION = 1.4826
# Noise is taken to be at least this share of the loss: a flat stretch makes no spike of every ripple.
LEAST_NOISE = 0.01


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A gradient that has not been applied.

    Attributes:
        loss: Mean over the batch's counted tokens, nats; equal on all ranks.
        grad_norm: L2 norm of the whole gradient; equal on all ranks.
        own_loss: Sum of this rank's losses before it was added to the others'; 0 on earlier pipeline stages.
        is_finite: Whether loss and gradient norm are numbers on all ranks.
        is_calm: Whether the loss is above the limit on none.
        metrics: Means of the objective's further sums; equal on all ranks.
    """

    loss: float
    grad_norm: float
    own_loss: float
    is_finite: bool
    is_calm: bool
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is to be done with a gradient.

    Attributes:
        measured: The gradient that is in the buffers now.
        may_update: Whether it may change the weights.
        spike: `transient` or `reproducible` if the loss jumped; None otherwise.
        limit: Loss from which on it would have been a spike.
        first_loss: Loss before the step was run again; the measured one if it was not.
    """

    measured: Measured
    may_update: bool
    spike: str | None
    limit: float
    first_loss: float


class StepGuard:
    """Refuses or skips what is not finite on any rank, and runs a step again whose loss jumps.

    A jump that is gone when the step runs again from the same state and on the same samples came from a machine; one
    that stays came from data or rate. Either is only flagged, and the last gradient is the one applied.

    Args:
        max_skips: Steps in a row that may be left out because they are not finite; 0 ends the run at the first.
        spike_sigmas: Robust standard deviations above the median of recent losses that make a spike; 0 for none.
    """

    def __init__(self, *, max_skips: int = 0, spike_sigmas: float = 0.0):
        self.max_skips = max_skips
        self.spike_sigmas = spike_sigmas
        self.recent: deque[float] = deque(maxlen=WINDOW)
        self.skipped_in_a_row = 0
        self.skipped = 0

    @property
    def may_run_again(self) -> bool:
        """Whether the next step may be asked to run again, so that its micro-batches must be kept."""
        return math.isfinite(self.spike_limit())

    def decide(self, trainable: Trainable, step: int, measure: Callable[[float], Measured]) -> Verdict:
        """Measures a gradient and judges it.

        Args:
            trainable: Holds the gradient.
            step: Its number, for messages.
            measure: Runs the step's forward and backward pass, held against a limit of the loss.
        Raises:
            TrainingError: if it is not finite and may not be skipped; no weight has been touched.
        """
        limit, spike = self.spike_limit(), None
        measured = measure(limit)
        first_loss = measured.loss
        if measured.is_finite and not measured.is_calm:
            measured = measure(limit)
            spike = "transient" if measured.is_finite and measured.is_calm else "reproducible"
        finite = measured.is_finite
        if finite:
            self.skipped_in_a_row = 0
            self.recent.append(measured.loss)
        else:
            self.skipped_in_a_row += 1
            if self.skipped_in_a_row > self.max_skips:
                raise TrainingError(self.refusal(trainable, step, measured))
            self.skipped += 1
        return Verdict(measured=measured, may_update=finite, spike=spike, limit=limit, first_loss=first_loss)

    def spike_limit(self) -> float:
        """The loss above which a step is run again; infinity while too little is known."""
        if not self.spike_sigmas or len(self.recent) < FEWEST:
            return math.inf
        median = statistics.median(self.recent)
        deviation = statistics.median(abs(loss - median) for loss in self.recent)
        return median + self.spike_sigmas * max(SIGMA_OF_DEVIATION * deviation, LEAST_NOISE * abs(median))

    def refusal(self, trainable: Trainable, step: int, measured: Measured) -> str:
        """Why the run stops, with the ranks that are to blame."""
        told = f"step {step}: loss={measured.loss} and grad_norm={measured.grad_norm} must be finite on every rank"
        if self.max_skips:
            told += f", and {self.skipped_in_a_row} steps in a row were not (training.skip_nonfinite_steps)"
        what, ranks = culprits(trainable, measured)
        blamed = f"not finite: {what} of {'rank' if len(ranks) == 1 else 'ranks'} {', '.join(map(str, ranks))}"
        return f"{told}; {blamed}; no weight was changed. Lower optimizer.lr or look at the samples of this step"


def agreed(trainable: Trainable, flags: torch.Tensor) -> torch.Tensor:
    """Each flag, 1 if it holds on all ranks, else 0: either every rank takes the step or none does.

    Args:
        trainable: Names the device and holds the timers.
        flags: bool, on the device; nobody waits for them here.
    """
    everywhere = flags.int()
    with trainable.timers.enter("communication"):
        dist.all_reduce(everywhere, op=dist.ReduceOp.MIN)
    return everywhere


def culprits(trainable: Trainable, measured: Measured) -> tuple[str, list[int]]:
    """What is not finite and on which ranks: a bad loss spoils every gradient, so losses are blamed first.

    Gradients are summed over replicas before they are looked at: of those, a part of the model is named.
    """
    squares = sum_of_squares(trainable.trained.get_main_grads_for_grad_norm()).item()
    mine = (math.isfinite(measured.own_loss), math.isfinite(squares), math.isfinite(measured.loss))
    everyone = all_gather(mine, list_of(of_type(bool), length=3))
    for what, column in (("loss", 0), ("gradient", 1), ("reduced loss", 2)):
        ranks = [rank for rank, sound in enumerate(everyone) if not sound[column]]
        if ranks:
            return what, ranks
    return "gradient norm", list(range(trainable.groups.world_size))
