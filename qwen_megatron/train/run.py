"""A run: everything the loop and its hooks share, and what they record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qwen_megatron.parallel.groups import Groups
from qwen_megatron.platforms import Platform
from qwen_megatron.train.job import Job
from qwen_megatron.train.state import TrainState
from qwen_megatron.train.step_timers import StepTimers
from qwen_megatron.train.trainable import Trainable


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One optimizer step; the same on all ranks, but for the clock.

    Attributes:
        step: Number of the step, the first is 1.
        loss: Mean loss before the update, nats a token in pretraining.
        grad_norm: L2 norm before clipping.
        learning_rate: Rate of the step.
        batch_size: Samples of the step.
        consumed_samples: Samples used, this step included.
        consumed_tokens: Tokens used, this step included.
        step_seconds: Wall time.
        phase_seconds: Of it, each of `step_timers.STEP_PHASES`, mean over ranks.
        tokens_per_second: Of the whole job.
        model_flops_utilization: Share of the peak, None where no peak is configured.
        peak_memory_bytes: Largest memory of any rank so far.
        own_seconds: Of step_seconds, what this rank did besides communicating; differs from rank to rank.
        skipped_steps: Steps of this start so far that were left out because they were not finite.
        spike: `transient` or `reproducible` if the loss jumped; None otherwise.
        metrics: What else the job measured, by name.
    """

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    batch_size: int
    consumed_samples: int
    consumed_tokens: int
    step_seconds: float
    phase_seconds: Mapping[str, float]
    tokens_per_second: float
    model_flops_utilization: float | None
    peak_memory_bytes: int
    own_seconds: float = 0.0
    skipped_steps: int = 0
    spike: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class EvaluationRecord:
    """One pass over held-out samples.

    Attributes:
        step: Steps trained before it.
        eval_loss: Mean loss, in the unit of the job (`Job.loss_title`).
        eval_seconds: Wall time.
        metrics: What else the job measured, by name.
        corpus: Name of the samples in `data.eval_blend`; None for those that `data.eval_samples` holds out.
    """

    step: int
    eval_loss: float
    eval_seconds: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    corpus: str | None = None


class Hook:
    """What happens besides training; every method may be left out. Hooks run in order, on every rank."""

    def on_start(self, run: Run) -> None:
        """Before the first step."""

    def on_step(self, run: Run, record: StepRecord) -> None:
        """After a step."""

    def on_evaluation(self, run: Run, record: EvaluationRecord) -> None:
        """After an evaluation."""

    def on_row(self, run: Run, row: Mapping[str, object]) -> None:
        """Something else that belongs into metrics.jsonl, with its step."""

    def on_end(self, run: Run) -> None:
        """After the last step; not after an error."""

    def close(self) -> None:
        """Releases local resources, also after an error: no collective may be called here."""


@dataclass(kw_only=True)
class Run:
    """The parts of a run of any job.

    Attributes:
        job: What is done in a step, and how many there are.
        directory: The run's folder.
        groups: Layout.
        platform: Machine.
        timers: What this rank is doing.
        trainables: The models by their names.
        state: Counters.
        hooks: In the order they are called.
        stopping: Why the run ends after the current step, if it does.
    """

    job: Job
    directory: Path
    groups: Groups
    platform: Platform
    timers: StepTimers
    trainables: Mapping[str, Trainable]
    state: TrainState
    hooks: Sequence[Hook] = field(default_factory=tuple)
    stopping: str | None = None

    @property
    def is_main(self) -> bool:
        """Whether this rank writes the run's files and lines."""
        return self.groups.rank == 0

    @property
    def num_steps(self) -> int:
        """Number of the schedule's last step."""
        return self.job.num_steps(self.state)

    @property
    def last_step(self) -> int:
        """Number of the step this run stops after."""
        return self.job.last_step(self.state)
