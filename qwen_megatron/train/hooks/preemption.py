"""Leaving early and in order: every rank stops after the same step, with everything saved."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from data_tools.io.atomic_file import write_atomically
from qwen_megatron.train.run import Hook, Run, StepRecord
from qwen_megatron.train.writing import writing

INTERRUPT = signal.SIGINT
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, INTERRUPT)
STOP_FILE = "stop"
COMPLETION = "completion.json"

# What ranks tell each other besides numbers of signals, none of which is so large.
STOP_FILE_FOUND = 1001
TIME_IS_UP = 1002

INTERRUPTED = b"interrupted: the step is finished and saved; once more leaves at once\n"


class PreemptionHook(Hook):
    """Ends a run on Ctrl-C, SIGTERM, SIGUSR1, a file `stop` in its folder, or after a time; the last of the hooks.

    A signal may reach one rank only, and ranks look at the folder at different times, so they ask each other after
    every step. The running step is finished, hooks save as at any end, and `completion.json` says why it ended. A
    second Ctrl-C ends the process at once, without waiting for anything; what was saved before is whole.

    Args:
        duration_seconds: Time by rank 0's clock after which the run ends; None for no limit.
    """

    def __init__(self, duration_seconds: float | None = None) -> None:
        self.deadline = None if duration_seconds is None else time.monotonic() + duration_seconds
        self.received: int | None = None
        self.speaks = False
        self.previous: dict[int, Any] = {}

    def on_start(self, run: Run) -> None:
        self.speaks = run.is_main
        if run.is_main:
            # Of an earlier part of the run; both would be taken for this one's.
            (run.directory / STOP_FILE).unlink(missing_ok=True)
            (run.directory / COMPLETION).unlink(missing_ok=True)
        if threading.current_thread() is threading.main_thread():
            # A shell that starts a job in the background has SIGINT ignored: it is meant for others.
            heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self.previous = {number: signal.signal(number, self.receive) for number in heeded}

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Notes a signal; the run ends after the step."""
        self.received = number
        if number == INTERRUPT:
            # The kernel's own way to end a process needs no interpreter, which may be waiting for a peer. torchrun
            # passes a first Ctrl-C on as SIGINT and a second one as SIGTERM.
            for again in (INTERRUPT, signal.SIGTERM):
                signal.signal(again, signal.SIG_DFL)
            if self.speaks:
                # To standard error itself: a handler may have interrupted a write to Python's buffer before it.
                with contextlib.suppress(OSError):
                    os.write(2, INTERRUPTED)

    def on_step(self, run: Run, record: StepRecord) -> None:
        reason = self.received or (self.found(run) if run.is_main else 0)
        heard = torch.tensor([reason], dtype=torch.int64, device=run.groups.device)
        dist.all_reduce(heard, op=dist.ReduceOp.MAX)
        number = int(heard.item())
        if number:
            words = {STOP_FILE_FOUND: "stop file", TIME_IS_UP: "time limit"}
            run.stopping = words.get(number) or signal.Signals(number).name

    def found(self, run: Run) -> int:
        """What rank 0 looks for itself."""
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return TIME_IS_UP
        return STOP_FILE_FOUND if (run.directory / STOP_FILE).exists() else 0

    def on_end(self, run: Run) -> None:
        if run.is_main:
            write_completion(run.directory, run.stopping or "finished", run.state.iteration)

    def close(self) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)


def write_completion(directory: Path, reason: str, step: int) -> None:
    """Says that the run ended in order, why, and after which step."""
    with writing(directory / COMPLETION):
        write_atomically(directory / COMPLETION, (json.dumps({"reason": reason, "step": step}) + "\n").encode())
