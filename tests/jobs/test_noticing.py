"""A sick run says who is ill, and stops before it harms itself."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from qwen_megatron.data.batch import Batch
from qwen_megatron.errors import ReplicaError, TrainingError
from qwen_megatron.train.hooks.straggler import stragglers
from qwen_megatron.train.hooks.weight_consistency import check_weight_consistency, describe_differences, parameter_hash
from qwen_megatron.train.step import StepResult
from qwen_megatron.train.step_guard import FEWEST, StepGuard
from tests.support.ranks import RankPool
from tests.support.trainables import (
    LossFunction,
    OwnLoss,
    TinyTrainable,
    next_token,
    parameter_bytes,
    random_batches,
    take_step,
    tiny_built,
    tiny_config,
    tiny_trainable,
    weights_of,
)
from tests.support.training import pretrain_job, rows

VOCAB = 161


def step(trainable: TinyTrainable, guard: StepGuard, number: int, loss: LossFunction | None = None) -> StepResult:
    """A step on the batch that belongs to its number."""
    batches = random_batches(trainable, VOCAB, seed=number)
    objective = None if loss is None else OwnLoss(loss)
    return take_step(trainable, batches, step=number, objective=objective, guard=guard)


def times(factors: list[float]) -> LossFunction:
    """The usual loss, the n-th call's times the n-th factor; 1 after the last."""
    left = iter(factors)

    def loss(losses: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        total, count = next_token(losses, batch)
        return total * next(left, 1.0), count

    return loss


# Spikes


def guard_with_history() -> StepGuard:
    guard = StepGuard(spike_sigmas=10.0)
    guard.recent.extend(math.log(VOCAB) + 0.01 * (i % 3) for i in range(FEWEST))
    return guard


@pytest.mark.parametrize(("factors", "verdict"), [([50.0] * 4, "transient"), ([50.0] * 8, "reproducible")])
def test_a_spike_is_run_again_and_called_by_its_kind(factors: list[float], verdict: str) -> None:
    with tiny_trainable() as trainable:
        # Four micro-batches a step: the first list spoils the first run alone.
        result = step(trainable, guard_with_history(), 1, times(factors))
        assert result.spike == verdict
        assert result.updated
        content = parameter_bytes(trainable)
    with tiny_trainable() as undisturbed:
        expected = step(undisturbed, StepGuard(), 1, times([]))
        same = (result.loss, result.grad_norm) == (expected.loss, expected.grad_norm)
        assert same == (verdict == "transient")
        if verdict == "transient":
            # As if nothing had been: weights, masters and moments.
            assert parameter_bytes(undisturbed) == content


def overlapped_spike_job(overrides: list[str]) -> tuple[list[str | None], bool]:
    """Three steps, the second with a transient spike on every last stage; verdicts, and whether all is as without."""
    with tiny_trainable(*overrides) as trainable:
        guard = guard_with_history()
        micro = trainable.num_microbatches
        verdicts = [
            step(trainable, guard, number, times([50.0] * micro if number == 2 else [])).spike for number in (1, 2, 3)
        ]
        other = tiny_built(tiny_config(*overrides), trainable.groups)
        for number in (1, 2, 3):
            step(other, StepGuard(), number, times([]))
        return verdicts, parameter_bytes(trainable) == parameter_bytes(other)


def test_a_step_is_run_again_in_a_pipeline_with_overlap(ranks: RankPool) -> None:
    overrides = ["parallel.pipeline_model_parallel_size=2", "parallel.overlap_grad_reduce=true"]
    overrides += ["parallel.overlap_param_gather=true", "training.precision=bf16"]
    for verdicts, same in ranks.run(4, overlapped_spike_job, overrides=overrides):
        assert verdicts == [None, "transient", None]
        assert same


def test_an_ordinary_step_is_run_once() -> None:
    calls = 0

    def counted(losses: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal calls
        calls += 1
        return next_token(losses, batch)

    with tiny_trainable() as trainable:
        assert step(trainable, guard_with_history(), 1, counted).spike is None
    assert calls == 4


def test_a_falling_or_noisy_loss_is_no_spike() -> None:
    guard = StepGuard(spike_sigmas=10.0)
    for number in range(200):
        loss = 3 + 9 * math.exp(-number / 20) + 0.3 * math.sin(7.0 * number)
        assert loss < guard.spike_limit()
        guard.recent.append(loss)
    assert guard.spike_limit() < 50 * loss


# What is not finite


def skip_job(overrides: list[str], bad_rank: int, bad: float, in_gradient: bool) -> dict[str, object]:
    """Two bad steps on one rank, one of which may be skipped."""

    def loss(losses: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        total, count = next_token(losses, batch)
        if dist.get_rank() != bad_rank or not total.requires_grad:
            return total, count
        if in_gradient:
            total.register_hook(lambda gradient: gradient * bad)
            return total, count
        return total * bad, count

    with tiny_trainable(*overrides) as trainable:
        guard = StepGuard(max_skips=1)
        step(trainable, guard, 1, times([]))
        before = parameter_bytes(trainable)
        skipped = step(trainable, guard, 2, loss)
        unchanged = parameter_bytes(trainable) == before
        try:
            step(trainable, guard, 3, loss)
            message = ""
        except TrainingError as error:
            message = str(error)
        unchanged = unchanged and parameter_bytes(trainable) == before
        good = step(trainable, guard, 4, times([]))
        return {
            "updated": (skipped.updated, good.updated),
            "unchanged": unchanged,
            "counted": guard.skipped,
            "message": message,
        }


@pytest.mark.parametrize(
    ("overrides", "bad", "in_gradient", "blamed"),
    [
        ([], math.nan, False, "not finite: loss of rank 1;"),
        (["parallel.tensor_model_parallel_size=2"], math.inf, True, "not finite: gradient of rank"),
    ],
    ids=["nan loss, dp2", "inf gradient, tp2"],
)
def test_all_ranks_skip_then_stop_and_the_culprit_is_named(
    ranks: RankPool, overrides: list[str], bad: float, in_gradient: bool, blamed: str
) -> None:
    for result in ranks.run(2, skip_job, overrides=overrides, bad_rank=1, bad=bad, in_gradient=in_gradient):
        assert result["updated"] == (False, True)
        assert result["unchanged"]
        assert result["counted"] == 1
        assert "2 steps in a row were not (training.skip_nonfinite_steps)" in str(result["message"])
        assert blamed in str(result["message"])


# Replicas


def flip_job(rank: int, weight: str) -> tuple[bool, str]:
    """Whether untouched replicas pass, and what is said after one bit was flipped on one rank."""
    with tiny_trainable("parallel.tensor_model_parallel_size=2") as trainable:
        step(trainable, StepGuard(), 1)
        first = parameter_hash([trainable])
        check_weight_consistency(trainable, 1)
        if dist.get_rank() == rank:
            (name,) = (name for name in weights_of(trainable) if name.endswith(weight))
            weights_of(trainable)[name].detach().view(torch.int32).flatten()[3] ^= 1
        try:
            check_weight_consistency(trainable, 2)
        except ReplicaError as error:
            return parameter_hash([trainable]) != first, str(error)
        return False, ""


@pytest.mark.parametrize(
    ("weight", "told"),
    [
        # Held alike by all four ranks of TP2 x DP2.
        ("layers.0.input_layernorm.weight", "layers.0.input_layernorm.weight: ranks 2 differ from the other 3"),
        # Split over tensor-parallel ranks: two replicas, of which none is right by majority.
        ("layers.0.mlp.linear_fc2.weight", "layers.0.mlp.linear_fc2.weight (part 0): ranks 0, 2 have different values"),
    ],
    ids=["norm", "matrix"],
)
def test_a_flipped_bit_is_named_by_weight_and_rank(ranks: RankPool, weight: str, told: str) -> None:
    for changed, message in ranks.run(4, flip_job, rank=2, weight=weight):
        assert changed
        assert message.startswith("step 2: ranks that must hold the same weights do not: stage 0, ")
        assert told in message


def test_many_differences_are_cut_short() -> None:
    sums = [{f"w{i}": 0 for i in range(10)}, {f"w{i}": i for i in range(10)}, {f"w{i}": 0 for i in range(10)}]
    told = describe_differences(sums)
    assert told.startswith("w1: ranks 1 differ from the other 2; w2")
    assert told.endswith("; and 1 more")


# Stragglers


def slow_rank_job(overrides: list[str], rank: int, seconds: float) -> list[str]:
    """Trains with one rank asleep for so long in every micro-batch; returns the warnings."""
    from qwen_megatron.train import step as step_module

    told: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    logger, handler, original = logging.getLogger("qwen_megatron.train.hooks.straggler"), Collect(), None
    original = step_module.forward_step

    def slow(*args: object, **kwargs: object) -> object:
        time.sleep(seconds if dist.get_rank() == rank else 0)
        return original(*args, **kwargs)  # type: ignore[arg-type]

    logger.addHandler(handler)
    step_module.forward_step = slow  # type: ignore[assignment]
    try:
        pretrain_job(overrides)
    finally:
        step_module.forward_step = original
        logger.removeHandler(handler)
    return told


@pytest.mark.parametrize("layout", ["training.seed=1", "parallel.tensor_model_parallel_size=2"], ids=["dp2", "tp2"])
def test_a_slow_rank_is_named(ranks: RankPool, byte_corpus: Path, tmp_path: Path, layout: str) -> None:
    from tests.support.training import SMALL

    settings = [*SMALL, f"data.blend=[{byte_corpus}]", f"checkpoint.directory={tmp_path}", layout]
    # The second report: the first one's steps are slow on all ranks.
    settings += ["training.exit_iter=10", "logging.straggler_interval=5"]
    settings += ["data.eval_samples=0", "logging.replica_check_interval=2"]
    told, _ = ranks.run(2, slow_rank_job, overrides=settings, rank=1, seconds=0.1)
    assert any(line.startswith("step 10: rank 1 is a straggler: ") for line in told), told
    assert not any("rank 0" in line for line in told)
    hashes = [row["parameter_hash"] for row in rows(tmp_path) if "parameter_hash" in row]
    assert len(set(hashes)) == 5


def test_stages_are_not_compared_with_each_other() -> None:
    assert stragglers([[1.0, 2.0, 0.0], [1.9, 2.0, 1.0]]) == []
    (line,) = stragglers([[1.0, 2.0, 0.0], [1.9, 2.0, 1.0], [1.1, 2.0, 0.0], [0.5, 2.0, 1.0]])
    assert line == "rank 1 is a straggler: 1.900 s of its own work a step, its peers 0.500 s, of 2.000 s"
