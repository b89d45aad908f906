"""Pretraining: one language model, next-token loss, a blend of corpora."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_tools.io.lock import FileLock
from qwen_megatron.config.resolve import ResolvedConfig
from qwen_megatron.data.batch import Batch
from qwen_megatron.data.blended import BlendedSamples
from qwen_megatron.data.loader import Loader
from qwen_megatron.data.pretraining.plan import corpus_plans
from qwen_megatron.data.protocol import Dataset, Needs
from qwen_megatron.jobs.blend import open_blend
from qwen_megatron.jobs.held_out import data_plan, open_held_out
from qwen_megatron.jobs.hooks import configured_hooks
from qwen_megatron.jobs.resume import restore
from qwen_megatron.jobs.session import session
from qwen_megatron.model.head_kinds import LANGUAGE_MODEL
from qwen_megatron.parallel.groups import Groups
from qwen_megatron.platforms import Platform
from qwen_megatron.train.job import Job, StepOutcome
from qwen_megatron.train.objective import NextTokenLoss, Objective
from qwen_megatron.train.run import Hook, Run
from qwen_megatron.train.schedule import learning_rate
from qwen_megatron.train.state import TrainState
from qwen_megatron.train.step import evaluate, train_step
from qwen_megatron.train.step_guard import StepGuard
from qwen_megatron.train.step_timers import StepTimers
from qwen_megatron.train.trainable import MAIN, build_trainable

log = logging.getLogger(__name__)


def perplexity(loss: float) -> float:
    """exp of a loss in nats a token; infinite, and no error, where floats end."""
    return math.exp(loss) if loss < 700 else math.inf


class Pretraining(Job):
    """Steps over a blend of corpora.

    A step's size and rate are functions of the samples consumed.

    Args:
        config: Resolved configuration.
        groups: Layout.
        objective: What to minimise; None for the next-token loss.
        dataset: Its samples; None for the corpora of `data.blend`.
        held_out: What is evaluated on besides, by name; None for the corpora of `data.eval_blend`.
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
        held_out: Mapping[str, Dataset] | None = None,
    ):
        self.config = config
        self.objective = objective or NextTokenLoss()
        self.dataset = dataset or open_blend(config)
        self.loader = loader_of(self.dataset, config, groups)
        held_out = open_held_out(config) if held_out is None else held_out
        self.held_out = {name: loader_of(held, config, groups) for name, held in held_out.items()}
        training = config.training
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
        tokens = batch_size * self.dataset.rows_per_sample * training.seq_length
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

    def evaluated_corpora(self) -> Sequence[str | None]:
        return [*([None] if self.dataset.eval_ids else []), *self.held_out]

    def evaluate(self, run: Run, corpus: str | None = None) -> tuple[float, Mapping[str, float]]:
        """Mean loss of a token, and `perplexity`, its exponential."""
        loader = self.loader if corpus is None else self.held_out[corpus]
        loss, means = evaluate(
            run.trainables[MAIN],
            self.objective,
            loader.evaluation(),
            shape=loader.shape,
            num_microbatches=loader.num_evaluation_microbatches,
        )
        return loss, {"perplexity": perplexity(loss), **means}

    def sources(self, state: TrainState) -> dict[str, dict[str, Any]]:
        return self.dataset.sources(state.consumed_samples)

    def corpora(self, state: TrainState) -> dict[str, dict[str, float]]:
        if not isinstance(self.dataset, BlendedSamples):
            return {}
        plans = corpus_plans(self.dataset, state.consumed_samples)
        return {
            plan.prefix: {"share": plan.share, "consumed_tokens": plan.tokens, "epoch_tokens": plan.epoch_tokens}
            for plan in plans
        }

    def check_data(self) -> None:
        for loader in (self.loader, *self.held_out.values()):
            loader.dataset.check_unchanged()

    def close(self) -> None:
        for loader in (self.loader, *self.held_out.values()):
            loader.close()


def loader_of(dataset: Dataset, config: ResolvedConfig, groups: Groups, *, needs: Needs | None = None) -> Loader:
    """This rank's way to the samples of a dataset.

    Args:
        dataset: Samples.
        config: Of the run.
        groups: Layout.
        needs: What every pipeline stage looks at; None for tokens on the first, labels and loss mask on the last.
    """
    return Loader(
        dataset,
        micro_batch_size=config.training.micro_batch_size,
        data_parallel_rank=groups.dp.rank(),
        data_parallel_size=groups.dp.size(),
        num_workers=config.data.num_workers,
        microbatch_multiple=(
            groups.pp.size() if config.parallel.virtual_pipeline_model_parallel_size is not None else 1
        ),
        read_ahead=config.num_microbatches,
        group=groups.readers,
        needs=needs or Needs(tokens=groups.is_first_stage, targets=groups.is_last_stage),
    )


def tell_of_data(job: Pretraining) -> None:
    """Logs what the run takes of each corpus, and warns of too many epochs."""
    if isinstance(job.dataset, BlendedSamples):
        lines, warnings = data_plan(job.config, job.dataset)
        for line in lines:
            log.info("data: %s", line)
        for warning in warnings:
            log.warning("%s", warning)


def pretrain(config: ResolvedConfig, more_hooks: Sequence[Hook] = ()) -> str | None:
    """Runs a configuration on this rank, from the newest checkpoint where there is one.

    Args:
        config: Resolved configuration.
        more_hooks: Called before the configured ones.
    Returns:
        Why it left early and in order, such as the name of a signal; None if it came to its end.
    Raises:
        DataError, CheckpointError, PlatformError, TrainingError: see their messages; nothing is left half-written.
    """
    return train_one_model(config, Pretraining, more_hooks=more_hooks)


def train_one_model(
    config: ResolvedConfig,
    job_of: Callable[[ResolvedConfig, Groups], Pretraining],
    *,
    head: str = LANGUAGE_MODEL,
    more_hooks: Sequence[Hook] = (),
) -> str | None:
    """Runs a job of one model on this rank; the others of this form differ in data, objective and head alone.

    Args:
        config: Resolved configuration.
        job_of: Makes the job.
        head: Of the model.
        more_hooks: Called before the configured ones.
    Returns, raises:
        As `pretrain`.
    """
    with session(config) as given:
        run = build_run(config, given.groups, given.platform, given.timers, given.lock, job_of=job_of, head=head)
        run.hooks = [*more_hooks, *run.hooks]
        given.train(run)
        return run.stopping


def build_run(
    config: ResolvedConfig,
    groups: Groups,
    platform: Platform,
    timers: StepTimers,
    lock: FileLock | None = None,
    *,
    job_of: Callable[[ResolvedConfig, Groups], Pretraining] = Pretraining,
    head: str = LANGUAGE_MODEL,
) -> Run:
    """Builds the model, opens the data, restores the state and puts the hooks in order."""
    trainables = {MAIN: build_trainable(config, groups, platform, head=head, timers=timers)}
    job = job_of(config, groups)
    if groups.rank == 0:
        tell_of_data(job)
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
