"""Notices ranks that hang: every rank tells the job's store what it is doing, and looks at its own clock.

A rank that waits for a silent one learns nothing from its collective but that time passes. The store tells more: who
has not been heard of, and what it did last. No collective is used, so that nothing here waits for the sick rank.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from qwen_megatron.config.parallel import ParallelConfig
from qwen_megatron.train.phases import OTHER
from qwen_megatron.train.run import Run

BEAT_SECONDS = 1.0
# A rank whose beat has not changed for so long is silent.
SILENCE_SECONDS = 2.5 * BEAT_SECONDS
LEFT = "left"
# What is done after a step and before the next.
BETWEEN_STEPS = ("evaluation", "replica check", "saving")


@dataclass(frozen=True, kw_only=True)
class Position:
    """What a rank is doing.

    Attributes:
        step: Number of the step under way; 0 before training.
        phase: Innermost phase.
        activity: Outermost phase: `evaluation`, `saving`, or one of a step's.
        since: `time.monotonic()` when the phase began.
    """

    step: int
    phase: str
    activity: str
    since: float


class Watchdog:
    """A thread that beats and looks; a context, from the meeting of the ranks to the end.

    Args:
        store: The attempt's store; a connection of its own is made.
        rank, world_size: This process and the job.
        limits: Time-outs.
        report: Told what is known before the process ends without waiting for anybody.
    """

    def __init__(
        self, store: dist.Store, rank: int, world_size: int, limits: ParallelConfig, report: Callable[[str], None]
    ):
        # Missing in the stubs of torch 2.13.
        self.store: dist.Store = store.clone()  # type: ignore[attr-defined]
        self.store.set_timeout(timedelta(seconds=10))
        self.rank = rank
        self.world_size = world_size
        self.limits = limits
        self.report = report
        self.started = time.monotonic()
        self.run: Run | None = None
        self.first_step = 0
        self.beats = 0
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.work, name="watch", daemon=True)

    def __enter__(self) -> Watchdog:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()

    def follow(self, run: Run) -> None:
        """From now on the run says where this rank is."""
        self.first_step = run.state.iteration + 1
        self.run = run

    def position(self) -> Position:
        if self.run is None:
            return Position(step=0, phase="start-up", activity="start-up", since=self.started)
        phases = self.run.timers
        phase, since = phases.now
        stack = [*phases.stack, phase]
        outermost = next((name for name in stack if name != OTHER), OTHER)
        return Position(step=self.run.state.iteration + 1, phase=phase, activity=outermost, since=since)

    def limit(self, position: Position) -> int:
        """Seconds that a rank may stay in the phase."""
        if position.step <= self.first_step:
            # Compiling kernels and connecting groups happens in the first step.
            return self.limits.start_timeout_seconds
        if position.activity == "saving":
            return self.limits.save_timeout_seconds
        if position.activity == "evaluation":
            return self.limits.evaluation_timeout_seconds
        return self.limits.step_timeout_seconds

    def work(self) -> None:
        while not self.done.wait(BEAT_SECONDS):
            position = self.position()
            self.beat(position.phase, position)
            if time.monotonic() - position.since > self.limit(position):
                self.give_up(position)
        self.beat(LEFT, self.position(), gone=True)

    def beat(self, phase: str, position: Position, *, gone: bool = False) -> None:
        self.beats += 1
        text = json.dumps(
            {
                "beat": self.beats,
                "step": position.step,
                "phase": phase,
                "activity": position.activity,
                "seconds": time.monotonic() - position.since,
                "time": time.time(),
                "process": f"{socket.gethostname()}, process {os.getpid()}",
                "gone": gone,
            }
        )
        try:
            self.store.set(f"beat/{self.rank}", text)
        except RuntimeError:
            # The store is gone with its process: the job is ending. Looking at the own clock goes on.
            return

    def give_up(self, position: Position) -> None:
        """Reports and ends this process: its main thread waits in a collective that nothing else would end."""
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        stack = "".join(traceback.format_stack(frame)[-4:]) if frame is not None else ""
        limit = self.limit(position)
        self.report(f"no progress in {position.phase} within {limit} s: {self.describe_peers()}\n{stack}".rstrip())
        # Whoever reports later does not take this rank for the silent one.
        self.beat(position.phase, position, gone=True)
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(1)

    def describe_peers(self) -> str:
        """Which ranks are silent and where everybody was last, in words; takes some seconds."""
        before = self.read_beats()
        end = time.monotonic() + SILENCE_SECONDS
        while time.monotonic() < end:
            # Peers that look at the same time must not take this rank for silent.
            position = self.position()
            self.beat(position.phase, position)
            time.sleep(BEAT_SECONDS / 4)
        after = self.read_beats()
        now = time.time()
        silent, waiting = [], defaultdict(list)
        for rank in range(self.world_size):
            beat = after.get(rank)
            if beat is None:
                silent.append(f"rank {rank} has never been heard of")
            elif rank != self.rank and not beat["gone"] and beat["beat"] == before.get(rank, beat)["beat"]:
                silent.append(
                    f"rank {rank} ({beat['process']}) is silent, it was last {place(beat)}, "
                    f"{now - beat['time']:.0f} s ago"
                )
            else:
                waiting[place(beat)].append(rank)
        told = [
            f"{'rank' if len(ranks) == 1 else 'ranks'} {', '.join(map(str, ranks))} {where}"
            for where, ranks in waiting.items()
        ]
        return "; ".join([*(silent or ["every rank is alive"]), *told])

    def read_beats(self) -> dict[int, dict[str, Any]]:
        """The last beats, by rank."""
        beats = {}
        try:
            for rank in range(self.world_size):
                # Asking for a key that is not there would wait for it.
                if self.store.check([f"beat/{rank}"]):
                    beats[rank] = json.loads(self.store.get(f"beat/{rank}"))
        except RuntimeError:
            # The store is gone; what was read is told.
            return beats
        return beats


def place(beat: dict[str, Any]) -> str:
    """`in forward of step 17`, `in communication of evaluation after step 16`, `gone after step 16`."""
    if beat["phase"] == LEFT:
        return f"gone after step {beat['step'] - 1}"
    if beat["activity"] in BETWEEN_STEPS:
        inner = "" if beat["phase"] == beat["activity"] else f"{beat['phase']} of "
        return f"in {inner}{beat['activity']} after step {beat['step'] - 1}"
    return f"in {beat['phase']}" if beat["step"] == 0 else f"in {beat['phase']} of step {beat['step']}"
