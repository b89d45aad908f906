"""What a failing rank says and leaves behind before it goes."""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from data_tools.io.plain_text import printable
from qwen_megatron.jobs.failure import Failure, is_lost_peer, restart_helps, write_failure
from qwen_megatron.jobs.peers import BETWEEN_STEPS
from qwen_megatron.jobs.watchdog import Watchdog
from qwen_megatron.parallel.rendezvous import Member


class FailureReport:
    """Prints a failure in one line and records it in the run's folder.

    Args:
        directory: The run's folder.
        member: This process's place.
        attempt: Number of torchrun's start.
        settings: `settings_digest` of the run.
    """

    def __init__(self, directory: Path, member: Member, attempt: int, settings: str):
        self.directory = directory
        self.member = member
        self.attempt = attempt
        self.settings = settings
        self.watchdog: Watchdog | None = None
        # Until the folder is known to be this job's, it may be another one's.
        self.told: Exception | None = None
        self.folder: os.stat_result | None = None

    def own_folder(self) -> None:
        """The folder is this job's from now on, until another one stands in its place."""
        self.folder = self.directory.stat()

    @property
    def owns_folder(self) -> bool:
        """Whether the folder that was taken is still the one of this name."""
        try:
            return self.folder is not None and os.path.samestat(self.folder, self.directory.stat())
        except OSError:
            return False

    @property
    def has_begun(self) -> bool:
        """Whether all checks of the start have been passed; what is refused before leaves the folder as it was."""
        return self.watchdog is not None and self.watchdog.run is not None

    def failed(self, error: Exception) -> None:
        """An error is on its way out of this process; told once, however often it is met on the way.

        A launcher that has seen another rank die ends this one with SIGTERM within a fraction of a second. It has to
        wait until line and record are written.
        """
        if error is self.told:
            return
        self.told = error
        with held_back(signal.SIGTERM):
            self.tell_of(error)

    def tell_of(self, error: Exception) -> None:
        """Records and prints an error of this rank, with what is known of the peers if it lost one."""
        message = str(error)
        lost_peer = is_lost_peer(error)
        if self.watchdog is not None:
            self.watchdog.will_leave(failed=not lost_peer)
        if lost_peer and self.watchdog is not None:
            message = f"{self.watchdog.describe_peers()} ({message})"
        activity = self.watchdog.position().activity if self.watchdog is not None else "start-up"
        self.tell(type(error).__name__, message, lost_peer=lost_peer, helps=restart_helps(error, activity))

    def stuck(self, message: str) -> None:
        """This process hangs and is about to end itself."""
        self.tell("Stuck", message, lost_peer=True, helps=True)

    def tell(self, error: str, message: str, *, lost_peer: bool, helps: bool) -> None:
        """Records and prints a failure, with the step, phase and samples it happened at."""
        step, phase, samples = self.place()
        failure = Failure(
            error=error,
            # Of what the system calls a file's name, half a character cannot be kept in JSON.
            message=printable(message),
            rank=self.member.rank,
            host=socket.gethostname(),
            pid=os.getpid(),
            attempt=self.attempt,
            step=step,
            phase=phase,
            samples=samples,
            time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            restart_helps=helps,
            lost_peer=lost_peer,
            settings=self.settings,
        )
        print(f"qwen-megatron: {printable(failure)}", file=sys.stderr, flush=True)
        if self.owns_folder and (helps or self.has_begun):
            try:
                write_failure(self.directory, failure)
            except OSError as problem:
                print(f"qwen-megatron: the failure cannot be recorded: {problem}", file=sys.stderr, flush=True)

    def place(self) -> tuple[int, str, tuple[int, ...]]:
        """Step, what is done in it, and the first and last number of its samples; between steps the step before."""
        if self.watchdog is None or self.watchdog.run is None:
            return 0, "start-up", ()
        run, position = self.watchdog.run, self.watchdog.position()
        if position.activity in BETWEEN_STEPS:
            return position.step - 1, position.activity, ()
        first = run.state.consumed_samples
        return position.step, position.phase, (first, first + run.job.samples_of(run.state, 1) - 1)


@contextlib.contextmanager
def held_back(number: signal.Signals) -> Iterator[None]:
    """Inside, a signal waits; it comes at the end, to whoever handled it before. Only the main thread can do this."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    previous = signal.signal(number, lambda arrived, _: received.append(arrived))
    try:
        yield
    finally:
        signal.signal(number, signal.SIG_DFL if previous is None else previous)
        if received:
            signal.raise_signal(number)
