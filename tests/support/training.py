"""Runs of the real pretraining entry point on a few ranks, read back from what a run leaves on disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.ranks import RankPool

# Seconds a run: for whatever does not ask how training goes.
SMALL = (
    # Left to `auto`, all ranks of a test would share one GPU where there is one.
    "parallel.platform=cpu",
    "model.preset=tiny",
    "model.num_layers=2",
    "model.vocab_size=257",
    "training.precision=fp32",
    "training.train_iters=20",
    "training.seed=1234",
    "training.seq_length=64",
    "training.micro_batch_size=2",
    "training.global_batch_size=4",
    "training.eval_interval=10",
    "optimizer.lr=1e-2",
    "optimizer.lr_warmup_iters=4",
    "data.eval_samples=4",
    "data.num_workers=1",
    "checkpoint.save_interval=1000",
    "logging.tensorboard=false",
)
# Two layers on each of two pipeline stages, for tests that must tell them apart.
DEEP = (*SMALL, "model.num_layers=4")

# The demo recipe in fp32 on its real vocabulary. Comparisons of layouts need it: with a vocabulary of bytes, moving all
# weights by one part in 10^7 moves the gradient norm of step 20 by 1e-4 in one process already; here by 4e-7.
DEMO = (
    "parallel.platform=cpu",
    "model.preset=tiny",
    "training.precision=fp32",
    "training.train_iters=20",
    "training.seed=1234",
    "training.seq_length=256",
    "training.micro_batch_size=1",
    "training.global_batch_size=4",
    "training.eval_interval=20",
    "optimizer.lr=1e-2",
    "optimizer.lr_warmup_iters=4",
    "data.eval_samples=4",
    "data.num_workers=1",
    "checkpoint.save_interval=1000",
    "logging.tensorboard=false",
)


def pretrain_on_ranks(
    ranks: RankPool,
    world_size: int,
    corpus: Path,
    directory: Path,
    *overrides: str,
    base: Sequence[str] = SMALL,
    timeout_seconds: float = 900,
) -> dict[int, dict[str, Any]]:
    """Trains and returns the step rows of the run's metrics.jsonl by step."""
    ranks.run(
        world_size,
        pretrain_job,
        timeout_seconds=timeout_seconds,
        overrides=[*base, f"data.blend=[{corpus}]", f"checkpoint.directory={directory}", *overrides],
    )
    return {row["step"]: row for row in rows(directory) if "loss" in row}


# Samples consumed, loss and gradient norm of each step.
Steps = list[tuple[int, float, float]]


def train_on_ranks(
    ranks: RankPool, world_size: int, overrides: Sequence[str], recipe: str | None = None, kind: str = "pretrain"
) -> Steps:
    """Trains as a job does, without its files: no checkpoint, no metrics, no evaluation; one thread a rank.

    Args:
        ranks: Pool.
        world_size: Ranks.
        overrides: Settings; the corpus among them.
        recipe: YAML file before them.
        kind: `pretrain`, `sft` or `reward`.
    """
    overrides = [*overrides, "data.eval_samples=0"]
    results = ranks.run(world_size, train_job, recipe=recipe, overrides=overrides, kind=kind)
    assert all(steps == results[0] for steps in results)
    return results[0]


def train_job(recipe: str | None, overrides: list[str], kind: str) -> Steps:
    """`train_on_ranks` on one rank."""
    import os

    import torch

    from qwen_megatron.config.load import load_config
    from qwen_megatron.config.resolve import resolve
    from qwen_megatron.jobs.kinds.table import JOBS
    from qwen_megatron.jobs.pretrain import Pretraining, build_run
    from qwen_megatron.jobs.reward import RewardTraining
    from qwen_megatron.jobs.sft import FineTuning
    from qwen_megatron.platforms import get_platform
    from qwen_megatron.train.loop import train
    from qwen_megatron.train.names import MAIN
    from qwen_megatron.train.run import Hook, Run, StepRecord
    from qwen_megatron.train.step_timers import StepTimers
    from tests.support.trainables import groups_for

    steps: Steps = []

    class Recorder(Hook):
        def on_step(self, run: Run, record: StepRecord) -> None:
            steps.append((record.consumed_samples, record.loss, record.grad_norm))

    torch.set_num_threads(1)
    config = resolve(
        load_config(recipe, [*overrides, "parallel.platform=cpu", "checkpoint.load=none"]),
        int(os.environ["WORLD_SIZE"]),
        JOBS[kind].shape,
    )
    job_of = {"pretrain": Pretraining, "sft": FineTuning, "reward": RewardTraining}[kind]
    with groups_for(config) as groups:
        run = build_run(config, groups, get_platform("cpu"), StepTimers(), job_of=job_of, head=JOBS[kind].heads[MAIN])
        run.hooks = [Recorder()]
        train(run)
    return steps


def as_after(step: int, source: Path, directory: Path) -> Path:
    """A copy of a run's folder without what it wrote after a step at which it was saved."""

    def later(_: str, names: list[str]) -> list[str]:
        return [name for name in names if name == "latest" or (name.startswith("iter_") and int(name[5:]) > step)]

    shutil.copytree(source, directory, ignore=later)
    rows_before = [row for row in rows(source) if row["step"] <= step]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_before))
    return directory


def rows(directory: Path) -> list[dict[str, Any]]:
    """All rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def pretrain_job(overrides: list[str]) -> None:
    """What `qwen-megatron pretrain KEY=VALUE...` does after the checks, on one rank."""
    run_job("pretrain", overrides)


def run_job(kind: str, overrides: list[str]) -> None:
    """What `qwen-megatron KIND KEY=VALUE...` does after the checks, on one rank."""
    import os

    from qwen_megatron.config.load import load_config
    from qwen_megatron.config.resolve import resolve
    from qwen_megatron.jobs.kinds.table import JOBS

    job = JOBS[kind]
    job.run(resolve(load_config(None, overrides), int(os.environ["WORLD_SIZE"]), job.shape))
