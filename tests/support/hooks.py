"""Runs and records for tests of hooks: nothing is trained."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from qwen_megatron.config.load import load_config
from qwen_megatron.config.resolve import ResolvedConfig, resolve
from qwen_megatron.jobs.pretrain import Pretraining
from qwen_megatron.train.run import EvaluationRecord, Hook, Run, StepRecord
from qwen_megatron.train.state import TrainState
from qwen_megatron.train.step_timers import StepTimers

PHASE_SECONDS = {
    "forward": 0.75,
    "backward": 1.25,
    "communication": 0.25,
    "optimizer": 0.125,
    "data": 0.0625,
    "other": 0.0625,
}


def make_run(directory: Path, *overrides: str, iteration: int = 0, rank: int = 0, hooks: tuple[Hook, ...] = ()) -> Run:
    given = [
        "parallel.platform=cpu",
        "model.preset=tiny",
        "training.train_iters=1000",
        f"checkpoint.directory={directory}",
        *overrides,
    ]
    groups: Any = SimpleNamespace(rank=rank)
    unused: Any = None
    config = resolve(load_config(None, given))
    state = TrainState(iteration=iteration, consumed_samples=config.training.batch_sizes.samples_after(iteration))
    return Run(
        job=Counted(config),
        directory=directory,
        groups=groups,
        platform=unused,
        timers=StepTimers(),
        trainables={},
        state=state,
        hooks=hooks,
    )


class Counted(Pretraining):
    """Pretraining of which nothing is asked but how many steps there are."""

    def __init__(self, config: ResolvedConfig):
        self.config = config

    def check_data(self) -> None:
        """There is none."""

    def evaluated_corpora(self) -> list[str | None]:
        return [None, "wiki"] if self.config.data.eval_blend else [None]


def record(step: int, **others: Any) -> StepRecord:
    values: dict[str, Any] = {
        "loss": 3.0625,
        "grad_norm": 1.23456,
        "learning_rate": 3e-4,
        "batch_size": 2048,
        "consumed_samples": 2048 * step,
        "consumed_tokens": 512 * step,
        "step_seconds": 2.5,
        "phase_seconds": PHASE_SECONDS,
        "tokens_per_second": 204_800.4,
        "model_flops_utilization": None,
        "peak_memory_bytes": 3 << 29,
    }
    return StepRecord(step=step, **(values | others))


def evaluation(step: int, loss: float = 2.5) -> EvaluationRecord:
    return EvaluationRecord(step=step, eval_loss=loss, eval_seconds=0.75, metrics={"perplexity": math.exp(loss)})
