"""Notices ranks that hang: every rank tells the job's store what it is doing, and looks at its own clock.

A rank that waits for a silent one learns nothing from its collective but that time passes. The store tells more: who
has not been heard of, and what it did last. No collective is used, so that nothing here waits for the sick rank.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

from qwen_megatron.config.sections.parallel import ParallelConfig
from qwen_megatron.jobs.neighbours import Neighbours
from qwen_megatron.jobs.peers import LEFT, Beat, describe, identity_of
from qwen_megatron.train.run import Run
from qwen_megatron.train.step_timers import OTHER

BEAT_SECONDS = 1.0
# A rank whose beat has not changed for so long is silent.
SILENCE_SECONDS = 2.5 * BEAT_SECONDS


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
    """A thread that beats and looks; a context, from the rendezvous to the end.

    Args:
        store: The attempt's store; a connection of its own is made.
        rank, world_size: This process and the job.
        limits: Time-outs.
        report: Told what is known before the process ends without waiting for anybody.
        neighbours: Other ranks on this machine, whose processes are watched.
    """

    def __init__(
        self,
        store: dist.Store,
        rank: int,
        world_size: int,
        limits: ParallelConfig,
        report: Callable[[str], None],
        neighbours: Iterable[int] = (),
    ):
        # Missing in the stubs of torch 2.13.
        self.store: dist.Store = store.clone()  # type: ignore[attr-defined]
        self.store.set_timeout(timedelta(seconds=10))
        self.neighbours = Neighbours(self.store, neighbours)
        self.rank = rank
        self.world_size = world_size
        self.limits = limits
        self.report = report
        self.started = time.monotonic()
        self.run: Run | None = None
        self.first_step = 0
        self.beats = 0
        self.leaving = False
        self.failed = False
        self.identity = identity_of(os.getpid())
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.work, name="watchdog", daemon=True)

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
        """Where this rank is now, in the run and in the step."""
        if self.run is None:
            return Position(step=0, phase="start-up", activity="start-up", since=self.started)
        phase, since = self.run.timers.now
        stack = [*self.run.timers.stack, phase]
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
        """Beats and looks until it is told to stop; the thread's body."""
        # At once: a rank that is killed in its first second is known, too.
        self.beat(self.position().phase, self.position())
        while not self.done.wait(BEAT_SECONDS):
            position = self.position()
            self.beat(position.phase, position)
            if time.monotonic() - position.since > self.limit(position):
                self.give_up(f"no progress in {position.phase} within {self.limit(position)} s")
            lost = self.neighbours.long_lost()
            # Whoever reports a failure already needs no second report.
            if lost is not None and not self.leaving:
                self.give_up(f"rank {lost} has ended, and {position.phase} does not notice")
        self.beat(LEFT, self.position(), gone=True)

    def beat(self, phase: str, position: Position, *, gone: bool = False) -> None:
        """Tells the job's store where this rank is."""
        self.beats += 1
        beat = Beat(
            number=self.beats,
            step=position.step,
            phase=phase,
            activity=position.activity,
            time=time.time(),
            process=f"{socket.gethostname()}, process {os.getpid()}",
            identity=self.identity,
            gone=gone or self.leaving,
            failed=self.failed,
        )
        try:
            self.store.set(f"beat/{self.rank}", beat.to_json())
        except RuntimeError:
            # The store is gone with its process: the job is ending. Looking at the own clock goes on.
            return

    def give_up(self, why: str) -> None:
        """Reports and ends this process: its main thread waits in a collective that nothing else would end."""
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        stack = "".join(traceback.format_stack(frame)[-4:]) if frame is not None else ""
        self.report(f"{why}: {self.describe_peers()}\n{stack}".rstrip())
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(1)

    def will_leave(self, *, failed: bool = False) -> None:
        """This rank reports a failure, its own one or a lost peer: from now on nobody takes it for the silent one."""
        self.leaving, self.failed = True, self.failed or failed
        position = self.position()
        self.beat(position.phase, position)

    def describe_peers(self) -> str:
        """Which ranks are dead or silent and where everybody was last, in words; takes some seconds at most.

        The caller is about to leave.
        """
        self.will_leave()
        # Missing in the stubs of torch 2.13.
        own: dist.Store = self.store.clone()  # type: ignore[attr-defined]
        return describe(own, self.rank, self.world_size, SILENCE_SECONDS)
