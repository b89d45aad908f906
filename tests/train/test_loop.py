"""The loop: what it calls when, what it counts, what it leaves open."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from qwen_megatron.config.resolve import ResolvedConfig
from qwen_megatron.data.batch import Batch
from qwen_megatron.errors import TrainingError
from qwen_megatron.jobs.pretrain import Pretraining
from qwen_megatron.train.loop import train
from qwen_megatron.train.objective import NextTokenLoss, Objective
from qwen_megatron.train.run import Hook, Run, StepRecord
from qwen_megatron.train.state import TrainState
from qwen_megatron.train.step_guard import StepGuard
from qwen_megatron.train.trainable import MAIN
from tests.support.trainables import (
    OwnLoss,
    TinyTrainable,
    next_token,
    parameter_bytes,
    random_batches,
    tiny_built,
    tiny_config,
    tiny_trainable,
)

VOCAB = 161


class RandomLoader:
    """Random micro-batches that tell whether they were closed."""

    def __init__(self, trainable: TinyTrainable, fail_at: int | None = None):
        self.trainable, self.fail_at = trainable, fail_at
        self.shape = trainable.shape
        self.started_at: int | None = None
        self.closed = 0

    def training(self, consumed_samples: int) -> Iterator[Batch]:
        self.started_at = consumed_samples
        per_batch = self.shape.micro_batch_size * self.trainable.groups.dp.size()
        batches = random_batches(self.trainable, VOCAB)
        for number, batch in enumerate(batches):
            if number * per_batch < consumed_samples:
                continue
            if number == self.fail_at:
                raise OSError("corpus.bin: the disk is gone")
            yield batch

    def close(self) -> None:
        self.closed += 1


class RandomPretraining(Pretraining):
    """Pretraining on random micro-batches instead of a corpus."""

    def __init__(self, config: ResolvedConfig, loader: Any, objective: Objective | None = None):
        self.config, self.loader, self.dataset = config, loader, SimpleNamespace(rows_per_sample=1)
        self.held_out = {}
        self.objective = objective or NextTokenLoss()
        self.guard = StepGuard()
        self.batches = None


class Journal(Hook):
    """Writes down its calls."""

    def __init__(self, name: str, calls: list[str], fail_in: str | None = None):
        self.name, self.calls, self.fail_in = name, calls, fail_in
        self.records: list[StepRecord] = []

    def note(self, call: str) -> None:
        self.calls.append(f"{self.name} {call}")
        if call.partition(" ")[0] == self.fail_in:
            raise RuntimeError(f"{self.name} fails in {call}")

    def on_start(self, run: Run) -> None:
        self.note(f"start {run.state.iteration}")

    def on_step(self, run: Run, record: StepRecord) -> None:
        self.records.append(record)
        self.note(f"step {record.step}")

    def on_end(self, run: Run) -> None:
        self.note(f"end {run.state.iteration}")

    def close(self) -> None:
        self.note("close")


@contextlib.contextmanager
def tiny_run(
    *overrides: str,
    iteration: int = 0,
    fail_at: int | None = None,
    fail_in: str | None = None,
    objective: Objective | None = None,
) -> Iterator[Any]:
    """A run on one rank whose two hooks keep a journal; the first may fail."""
    with tiny_trainable(*overrides) as trainable:
        config, calls = tiny_config(*overrides), []
        samples = iteration * config.training.global_batch_size
        state = TrainState(
            iteration=iteration, consumed_samples=samples, consumed_tokens=samples * config.training.seq_length
        )
        hooks = (Journal("a", calls, fail_in), Journal("b", calls))
        yield (
            Run(
                job=RandomPretraining(config, RandomLoader(trainable, fail_at), objective),
                directory=Path("unused"),
                groups=trainable.groups,
                platform=trainable.platform,
                timers=trainable.timers,
                trainables={MAIN: trainable},
                state=state,
                hooks=hooks,
            ),
            calls,
        )


THREE = "training.train_iters=3"


def test_hooks_are_called_in_order() -> None:
    with tiny_run(THREE) as (run, calls):
        train(run)
        steps = [f"{name} step {step}" for step in (1, 2, 3) for name in "ab"]
        assert calls == ["a start 0", "b start 0", *steps, "a end 3", "b end 3", "a close", "b close"]
        assert run.job.loader.closed == 1


def test_records_count_and_measure() -> None:
    with tiny_run("training.train_iters=20", "training.exit_iter=3", "optimizer.lr_warmup_iters=2") as (run, _):
        train(run)
        records = run.hooks[0].records
    assert [record.step for record in records] == [1, 2, 3]
    assert [record.consumed_samples for record in records] == [8, 16, 24]
    assert [record.consumed_tokens for record in records] == [256, 512, 768]
    assert [record.learning_rate for record in records[:2]] == [5e-3, 1e-2]
    assert 9e-3 < records[2].learning_rate < 1e-2
    for record in records:
        assert record.tokens_per_second == pytest.approx(256 / record.step_seconds)
        assert record.model_flops_utilization is None
        assert 50 << 20 < record.peak_memory_bytes < 1 << 40
    assert run.state == TrainState(iteration=3, consumed_samples=24, consumed_tokens=768)


def test_utilization_is_the_share_of_the_configured_peak() -> None:
    with tiny_run("training.train_iters=1", "logging.peak_tflops_per_rank=2.0") as (run, _):
        train(run)
        (record,) = run.hooks[0].records
        achieved = run.job.config.flops_per_token * record.tokens_per_second
    assert record.model_flops_utilization == pytest.approx(achieved / 2e12)


def test_going_on_equals_an_uninterrupted_run() -> None:
    """Dropout included: its masks are functions of seed, step and sample."""
    rates = ("model.hidden_dropout=0.1", "model.attention_dropout=0.1", "model.implementation=torch")
    dropout = (*rates, "training.train_iters=6")
    with tiny_run(*dropout) as (run, _):
        train(run)
        whole = [(record.loss, record.grad_norm) for record in run.hooks[0].records]
        content = parameter_bytes(run.trainables[MAIN])
    assert len({loss for loss, _ in whole}) == 6
    with tiny_run(*dropout, "training.exit_iter=3") as (run, _):
        train(run)
        # Whatever draws in between must not matter.
        torch.manual_seed(5)
        run.job = RandomPretraining(tiny_config(*dropout), run.job.loader)
        train(run)
        assert run.job.loader.started_at == 24
        assert [(record.loss, record.grad_norm) for record in run.hooks[0].records] == whole
        assert parameter_bytes(run.trainables[MAIN]) == content


def test_dropout_differs_from_step_to_step_and_seed_to_seed() -> None:
    losses = []
    for seed in (1, 2):
        with tiny_run("model.hidden_dropout=0.5", THREE, "optimizer.lr=1e-30", f"training.seed={seed}") as (run, _):
            seeded = run.trainables[MAIN].dropout_seed
            built = tiny_built(tiny_config("model.hidden_dropout=0.5"), run.groups, timers=run.timers)
            run.trainables = {MAIN: dataclasses.replace(built, dropout_seed=seeded)}
            batch = next(random_batches(built, VOCAB))
            run.job.loader.training = lambda consumed, batch=batch: iter([batch] * 100)
            train(run)
            losses += [record.loss for record in run.hooks[0].records]
    # The same weights and tokens six times: only the masks differ.
    assert len(set(losses)) == 6


def test_nothing_to_train_still_starts_and_ends() -> None:
    with tiny_run(THREE, iteration=3) as (run, calls):
        train(run)
        assert calls == ["a start 3", "b start 3", "a end 3", "b end 3", "a close", "b close"]


def bad_loss(losses: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    total, count = next_token(losses, batch)
    return total * float("nan"), count


def test_after_an_error_everything_is_closed_and_nothing_ends() -> None:
    with tiny_run(THREE, objective=OwnLoss(bad_loss)) as (run, calls):
        with pytest.raises(TrainingError, match="step 1"):
            train(run)
        assert calls == ["a start 0", "b start 0", "a close", "b close"]
        assert run.job.loader.closed == 1
        assert run.state.iteration == 0


def test_an_error_of_the_data_passes_through() -> None:
    with tiny_run(THREE, fail_at=5) as (run, calls):
        with pytest.raises(OSError, match="the disk is gone"):
            train(run)
        assert calls == ["a start 0", "b start 0", "a step 1", "b step 1", "a close", "b close"]
        assert run.job.loader.closed == 1


@pytest.mark.parametrize("fail_in", ["start", "step", "end", "close"])
def test_an_error_of_one_hook_leaves_no_other_open(fail_in: str) -> None:
    with tiny_run(THREE, fail_in=fail_in) as (run, calls):
        with pytest.raises(RuntimeError, match=f"a fails in {fail_in}"):
            train(run)
        assert calls[-2:] == ["a close", "b close"]
        assert run.job.loader.closed == 1


def test_an_error_is_still_told_when_closing_fails_too() -> None:
    with tiny_run(THREE, fail_at=0, fail_in="close") as (run, calls):
        with pytest.raises(RuntimeError, match="a fails in close") as caught:
            train(run)
        assert "the disk is gone" in str(caught.value.__context__)
        assert calls[-2:] == ["a close", "b close"]
