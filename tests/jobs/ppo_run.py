"""PPO as torchrun would start it; `KILL` in the environment, such as `1:2`, kills that rank after that step."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

import torch

from qwen_megatron.config.load import load_config
from qwen_megatron.config.resolve import resolve
from qwen_megatron.jobs.ppo import ppo
from qwen_megatron.train.run import Hook, Run, StepRecord

KILL = "QWEN_MEGATRON_TEST_KILL"


class KillHook(Hook):
    """Kills a rank after a step of the first start."""

    def on_step(self, run: Run, record: StepRecord) -> None:
        # Called before the checkpoint of this step: it is taken again.
        rank, _, step = os.environ.get(KILL, "").partition(":")
        first_start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        if first_start and step and (run.groups.rank, record.step) == (int(rank), int(step)):
            os.kill(os.getpid(), signal.SIGKILL)


def run_ppo(overrides: Sequence[str]) -> None:
    """The job on this rank."""
    torch.set_num_threads(1)
    ppo(resolve(load_config(None, overrides), int(os.environ["WORLD_SIZE"])), [KillHook()])
