"""A job of two models: a language model, and a scalar head that learns numbers made of the tokens.

Started by torchrun with settings, it trains. `KILL` in the environment, such as `2:5`, kills that rank after that step
of the first start.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from qwen_megatron.config.load import load_config
from qwen_megatron.config.resolve import ResolvedConfig, resolve
from qwen_megatron.data.batch import Batch
from qwen_megatron.data.protocol import Dataset
from qwen_megatron.jobs.blend import open_blend
from qwen_megatron.jobs.hooks import configured_hooks
from qwen_megatron.jobs.pretrain import Pretraining
from qwen_megatron.jobs.resume import restore
from qwen_megatron.jobs.session import session
from qwen_megatron.model.head_kinds import SCALAR
from qwen_megatron.model.heads import HeadRequest, Output
from qwen_megatron.parallel.groups import Groups
from qwen_megatron.train.job import StepOutcome
from qwen_megatron.train.objective import Objective, Sums
from qwen_megatron.train.run import Hook, Run, StepRecord
from qwen_megatron.train.step import train_step
from qwen_megatron.train.trainable import MAIN, build_trainable

KILL = "QWEN_MEGATRON_TEST_KILL"


class Evenness(Objective):
    """Squared distance from the share of even tokens so far."""

    metric_names = ("distance",)

    def request(self, batch: Batch) -> HeadRequest:
        return HeadRequest(output=Output.SCALARS)

    def measure(self, output: torch.Tensor, batch: Batch) -> Sums:
        mask_bs = batch.loss_mask_bs.to(output.device)
        distance_bs = output - batch.extras["evenness_bs"].to(output.device)
        return Sums(
            total=(distance_bs.square() * mask_bs).sum(),
            count=mask_bs.sum().to(torch.int32),
            metrics={"distance": (distance_bs.abs() * mask_bs).sum()},
        )


class Labelled(Dataset):
    """Another dataset's samples with the numbers that the scalar head learns."""

    def __init__(self, inner: Dataset):
        self.inner = inner
        self.seq_length, self.eval_ids = inner.seq_length, inner.eval_ids

    def train_id(self, number: int) -> Any:
        return self.inner.train_id(number)

    def batch(self, ids: Sequence[Any | None]) -> Batch:
        batch = self.inner.batch(ids)
        even_bs = (batch.tokens_bs % 2 == 0).float()
        evenness_bs = even_bs.cumsum(dim=1) / torch.arange(1, even_bs.size(1) + 1)
        return dataclasses.replace(batch, extras={"evenness_bs": evenness_bs})

    def sources(self, consumed_samples: int) -> dict[str, dict[str, Any]]:
        return self.inner.sources(consumed_samples)

    def check_unchanged(self) -> None:
        self.inner.check_unchanged()


class TwoModels(Pretraining):
    """Each step trains the language model, then the critic, on the same samples."""

    def __init__(self, config: ResolvedConfig, groups: Groups):
        super().__init__(config, groups, dataset=Labelled(open_blend(config)))
        self.steps_of_all_starts = 0

    def step(self, run: Run) -> StepOutcome:
        taken: list[Batch] = []
        outcome = self.language_step(run, taken)
        critic = train_step(
            run.trainables["critic"],
            Evenness(),
            iter(taken),
            shape=self.loader.shape,
            num_microbatches=len(taken),
            step=run.state.iteration + 1,
            learning_rate=3e-3,
            clip_grad=1.0,
        )
        self.steps_of_all_starts += 1
        metrics = {"critic/loss": critic.loss, "critic/grad_norm": critic.grad_norm, **critic.metrics}
        return dataclasses.replace(outcome, metrics={**metrics, "steps": float(self.steps_of_all_starts)})

    def language_step(self, run: Run, taken: list[Batch]) -> StepOutcome:
        """Pretraining's step, whose batches are kept."""
        batches = self.batches or self.loader.training(run.state.consumed_samples)

        def kept() -> Any:
            for batch in batches:
                taken.append(batch)
                yield batch

        self.batches = kept()
        outcome = super().step(run)
        self.batches = batches
        return outcome

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps_of_all_starts}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        self.steps_of_all_starts = saved["steps"]


class KillHook(Hook):
    """Kills a rank after a step of the first start, once the step's save is under way."""

    def on_step(self, run: Run, record: StepRecord) -> None:
        rank, _, step = os.environ.get(KILL, "").partition(":")
        first_start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        if first_start and step and (run.groups.rank, record.step) == (int(rank), int(step)):
            os.kill(os.getpid(), signal.SIGKILL)


def train_two(overrides: Sequence[str]) -> None:
    """The job on this rank."""
    config = resolve(load_config(None, overrides), int(os.environ["WORLD_SIZE"]))
    with session(config) as given:
        groups, platform, timers = given.groups, given.platform, given.timers
        language = build_trainable(config, groups, platform, name=MAIN, timers=timers)
        critic = build_trainable(config, groups, platform, name="critic", head=SCALAR, seed=77, timers=timers)
        trainables = {MAIN: language, "critic": critic}
        job = TwoModels(config, groups)
        given.train(
            Run(
                job=job,
                directory=Path(config.checkpoint.directory),
                groups=groups,
                platform=platform,
                timers=timers,
                trainables=trainables,
                state=restore(job, trainables),
                hooks=[*configured_hooks(config, given.lock), KillHook()],
            )
        )


if __name__ == "__main__":
    train_two(sys.argv[1:])
