"""Pretraining: one language model, next-token loss, a blend of corpora."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_tools.io.lock import FileLock
from qwen_megatron.config.resolve import ResolvedConfig
from qwen_megatron.data.batch import Batch
from qwen_megatron.data.loader import Loader
from qwen_megatron.data.protocol import Dataset
from qwen_megatron.jobs.blend import open_blend
from qwen_megatron.jobs.hooks import configured_hooks
from qwen_megatron.jobs.resume import restore
from qwen_megatron.jobs.session import session
from qwen_megatron.parallel.groups import Groups
from qwen_megatron.platforms import Platform
from qwen_megatron.train.job import Job, StepOutcome
from qwen_megatron.train.objective import NextTokenLoss, Objective
from qwen_megatron.train.run import Run
from qwen_megatron.train.schedule import learning_rate
from qwen_megatron.train.state import TrainState
from qwen_megatron.train.step import evaluate, train_step
from qwen_megatron.train.step_guard import StepGuard
from qwen_megatron.train.step_timers import StepTimers
from qwen_megatron.train.trainable import MAIN, build_trainable


class Pretraining(Job):
    """Steps over a blend of corpora.

    A step's size and rate are functions of the samples consumed.

    Args:
        config: Resolved configuration.
        groups: Layout.
        objective: What to minimise; None for the next-token loss.
        dataset: Its samples; None for the corpora of `data.blend`.
    Raises:
        DataError: if a corpus is missing, damaged or too small.
    """

    def __init__(
        self,
        config: ResolvedConfig,
        groups: Groups,
        *,
        objective: Objective | None = None,
        dataset: Dataset | None = None,
    ):
        training = config.training
        self.config = config
        self.objective = objective or NextTokenLoss()
        self.dataset = dataset or open_blend(config)
        self.loader = Loader(
            self.dataset,
            micro_batch_size=training.micro_batch_size,
            data_parallel_rank=groups.dp.rank(),
            data_parallel_size=groups.dp.size(),
            num_workers=config.data.num_workers,
            microbatch_multiple=(
                groups.pp.size() if config.parallel.virtual_pipeline_model_parallel_size is not None else 1
            ),
            read_ahead=config.num_microbatches,
            group=groups.tp_cp,
            device=groups.device,
            needs_tokens=groups.is_first_stage or groups.is_last_stage,
        )
        self.guard = StepGuard(max_skips=training.skip_nonfinite_steps, spike_sigmas=training.spike_sigmas)
        self.batches: Iterator[Batch] | None = None

    def num_steps(self, state: TrainState) -> int:
        """Steps taken, and as many as the samples left over make."""
        training = self.config.training
        return state.iteration + training.batch_sizes.steps_between(state.consumed_samples, training.samples_in_all)

    def samples_of(self, state: TrainState, steps: int) -> int:
        return self.config.training.batch_sizes.samples_after(steps, state.consumed_samples) - state.consumed_samples

    def step(self, run: Run) -> StepOutcome:
        training, optimizer, state = self.config.training, self.config.optimizer, run.state
        if self.batches is None:
            self.batches = self.loader.training(state.consumed_samples)
        batch_size = training.batch_sizes.at(state.consumed_samples)
        rate = learning_rate((state.consumed_samples + batch_size) / training.global_batch_size, optimizer)
        result = train_step(
            run.trainables[MAIN],
            self.objective,
            self.batches,
            shape=self.loader.shape,
            num_microbatches=self.config.microbatches_of(batch_size),
            step=state.iteration + 1,
            learning_rate=rate,
            clip_grad=optimizer.clip_grad,
            guard=self.guard,
        )
        tokens = batch_size * training.seq_length
        return StepOutcome(
            loss=result.loss,
            grad_norm=result.grad_norm,
            learning_rate=rate,
            batch_size=batch_size,
            tokens=tokens,
            flops=self.config.flops_per_token * tokens,
            metrics=result.metrics,
            skipped_steps=self.guard.skipped,
            spike=result.spike,
        )

    def evaluate(self, run: Run) -> tuple[float, Mapping[str, float]]:
        return evaluate(
            run.trainables[MAIN],
            self.objective,
            self.loader.evaluation(),
            shape=self.loader.shape,
            num_microbatches=self.loader.num_evaluation_microbatches,
        )

    def sources(self, state: TrainState) -> dict[str, dict[str, Any]]:
        return self.dataset.sources(state.consumed_samples)

    def check_data(self) -> None:
        self.dataset.check_unchanged()

    def close(self) -> None:
        self.loader.close()


def pretrain(config: ResolvedConfig) -> str | None:
    """Runs a configuration on this rank, from the newest checkpoint where there is one.

    Returns:
        Why it left early and in order, such as the name of a signal; None if it came to its end.
    Raises:
        DataError, CheckpointError, PlatformError, TrainingError: see their messages; nothing is left half-written.
    """
    with session(config) as job:
        run = build_run(config, job.groups, job.platform, job.timers, job.lock)
        job.train(run)
        return run.stopping


def build_run(
    config: ResolvedConfig, groups: Groups, platform: Platform, timers: StepTimers, lock: FileLock | None = None
) -> Run:
    """Builds the model, opens the data, restores the state and puts the hooks in order."""
    trainables = {MAIN: build_trainable(config, groups, platform, timers=timers)}
    job = Pretraining(config, groups)
    return Run(
        job=job,
        directory=Path(config.checkpoint.directory),
        groups=groups,
        platform=platform,
        timers=timers,
        trainables=trainables,
        state=restore(job, trainables),
        hooks=configured_hooks(config, lock),
    )
