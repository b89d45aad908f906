"""Saves during a run."""

from __future__ import annotations

import logging
import time

from qwen_megatron.checkpoint.save import save_checkpoint
from qwen_megatron.train.run import Hook, Run, StepRecord

log = logging.getLogger(__name__)


class CheckpointHook(Hook):
    """Saves every `interval` steps and after the last step."""

    def __init__(self, interval: int):
        self.interval = interval
        self.saved_at = -1

    def on_start(self, run: Run) -> None:
        # What was just loaded need not be saved again if there is nothing to train.
        self.saved_at = run.state.iteration

    def on_step(self, run: Run, record: StepRecord) -> None:
        if record.step % self.interval == 0:
            self.save(run)

    def on_end(self, run: Run) -> None:
        if self.saved_at != run.state.iteration:
            self.save(run)

    def save(self, run: Run) -> None:
        started = time.perf_counter()
        with run.engine.phases.enter("save"):
            folder = save_checkpoint(run)
        self.saved_at = run.state.iteration
        if run.is_main:
            log.info("saved %s in %.1f s", folder, time.perf_counter() - started)
