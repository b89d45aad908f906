"""What a run does: the loop, its hooks and checkpoints know every job by this and nothing else."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qwen_megatron.config.resolve import ResolvedConfig
from qwen_megatron.train.state import TrainState

if TYPE_CHECKING:
    from qwen_megatron.train.run import Run


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    """What a job did in one step; the same on all ranks.

    Attributes:
        loss: Of the step's main objective, before the update.
        grad_norm: Of its model, before clipping.
        learning_rate: Of its model.
        batch_size: Samples consumed.
        tokens: Tokens consumed.
        flops: Floating-point operations of the model in the step; None where they are not known.
        metrics: What else was measured, by name.
        skipped_steps: Steps of this start so far that were left out because they were not finite.
        spike: `transient` or `reproducible` if the loss jumped; None otherwise.
    """

    loss: float
    grad_norm: float
    learning_rate: float
    batch_size: int
    tokens: int
    flops: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    skipped_steps: int = 0
    spike: str | None = None


class Job(abc.ABC):
    """One kind of training; a composition of trainables, objectives and data.

    Attributes:
        config: Resolved configuration.
        loss_title: What its losses are, over their curves.
    """

    config: ResolvedConfig
    loss_title = "Loss, nats a token"

    @abc.abstractmethod
    def num_steps(self, state: TrainState) -> int:
        """Number of the schedule's last step, seen from where the run stands."""

    def last_step(self, state: TrainState) -> int:
        """Number of the step this run stops after."""
        exit_iter, num_steps = self.config.training.exit_iter, self.num_steps(state)
        return num_steps if exit_iter is None else min(exit_iter, num_steps)

    @abc.abstractmethod
    def samples_of(self, state: TrainState, steps: int) -> int:
        """Samples of the next `steps` steps."""

    @abc.abstractmethod
    def step(self, run: Run) -> StepOutcome:
        """Takes the step after `run.state`, which the loop counts.

        Raises:
            TrainingError: if it cannot be taken.
        """

    def evaluated_corpora(self) -> Sequence[str | None]:
        """What is evaluated, in this order: None for what is held out of the training data, and names of other data."""
        return (None,)

    def evaluate(self, run: Run, corpus: str | None = None) -> tuple[float, Mapping[str, float]]:
        """Mean loss over one of `evaluated_corpora`, and further metrics by name; equal on all ranks."""
        raise NotImplementedError

    def corpora(self, state: TrainState) -> dict[str, dict[str, float]]:
        """What each corpus gave and will give, for `starts.jsonl`: `share`, `consumed_tokens` and `epoch_tokens`."""
        return {}

    def sources(self, state: TrainState) -> dict[str, dict[str, Any]]:
        """What the samples come from, for checkpoints: see `data.protocol.Dataset.sources`."""
        return {}

    def check_data(self) -> None:  # noqa: B027 - not every job reads files
        """Before anything that was learned is kept or judged: are the files that samples come from what they were?

        Raises:
            DataError: naming the one that is not.
        """

    def state_dict(self) -> dict[str, Any]:
        """What else the job needs to go on, as JSON values."""
        return {}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:  # noqa: B027 - not every job has one
        """Goes on from what `state_dict` gave."""

    def close(self) -> None:  # noqa: B027 - not every job has one
        """Releases local resources, also after an error: no collective may be called here."""
