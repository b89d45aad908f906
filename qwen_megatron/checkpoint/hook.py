"""Saves during a run."""

from __future__ import annotations

import time

import torch
import torch.distributed as dist

from qwen_megatron.checkpoint.retention import remove_leftovers
from qwen_megatron.checkpoint.save import Saver
from qwen_megatron.train.run import Hook, Run, StepRecord


class CheckpointHook(Hook):
    """Saves every so many steps, every so many minutes, and after the last step.

    Args:
        saver: Writes.
        interval: Steps.
        interval_seconds: By rank 0's clock, since the last save; None for steps alone.
    """

    def __init__(self, saver: Saver, interval: int, interval_seconds: float | None = None):
        self.saver = saver
        self.interval = interval
        self.interval_seconds = interval_seconds
        self.saved_at = -1
        self.saved_time = 0.0

    def on_start(self, run: Run) -> None:
        if run.is_main:
            remove_leftovers(run.directory)
        # What was just loaded need not be saved again if there is nothing to train.
        self.saved_at = run.state.iteration
        self.saved_time = time.monotonic()

    def on_step(self, run: Run, record: StepRecord) -> None:
        with run.timers.enter("saving"):
            self.saver.poll(run)
            if record.step % self.interval == 0 or self.is_time(run):
                self.save(run)

    def is_time(self, run: Run) -> bool:
        """Whether the minutes are over; ranks ask rank 0, clocks differ."""
        if self.interval_seconds is None:
            return False
        due = time.monotonic() - self.saved_time >= self.interval_seconds
        answer = torch.tensor([due], dtype=torch.int64, device=run.groups.device)
        dist.broadcast(answer, src=0)
        return bool(answer.item())

    def on_end(self, run: Run) -> None:
        with run.timers.enter("saving"):
            if self.saved_at != run.state.iteration:
                self.save(run)
            self.saver.finish(run)

    def save(self, run: Run) -> None:
        """Begins a checkpoint of the step that the run has come to."""
        run.job.check_data()
        self.saver.save(run)
        self.saved_at = run.state.iteration
        self.saved_time = time.monotonic()

    def close(self) -> None:
        self.saver.close()
