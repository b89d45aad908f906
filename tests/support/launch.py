"""torchrun without its imports: its own agent, forked from a process that has imported everything once.

A rank of a real launch imports torch and Megatron-Core first, some ten seconds of processor time a start, and a job
that is killed and started again pays twice. Here the agent is torchrun's (`torch.distributed.run`, its rendezvous, its
restarts, its signals), but a fork of the process that the ranks of the pool are forked from, and so are its ranks:
`torchrun --run-path --start-method fork`. From its `main` on, a rank runs what it always runs; its process number,
environment and way to die are its own. What differs is named by tests that launch in the usual way
(tests/jobs/test_loopback.py, tests/jobs/test_two_nodes.py).
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.ranks import forkserver

Program = Callable[[Sequence[str]], int | None]


def product(arguments: Sequence[str]) -> int:
    """`qwen-megatron ARGUMENTS`."""
    from qwen_megatron.cli.main import main

    return main(arguments)


class ForkedAgent:
    """An agent under way; the part of `subprocess.Popen` that tests use.

    Args:
        options: torchrun's, such as `--nproc-per-node`.
        program: What a rank runs, a function of a module; its result is the exit status.
        arguments: Its arguments.
        log: File that agent and ranks write to.
        environment: Variables of theirs in place of the tests' own.
        directory: Their working directory.
        on_loopback: Whether they meet as under `qwen-megatron launch`.
    """

    def __init__(
        self,
        options: Sequence[str],
        program: Program,
        arguments: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str],
        directory: Path,
        on_loopback: bool = False,
    ):
        self.log = log
        log.touch()
        call = (list(options), program, list(arguments), log, dict(environment), directory, on_loopback)
        self.process: Any = forkserver().Process(target=be_agent, args=call)
        self.process.start()
        self.pid: int = self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode  # type: ignore[no-any-return]

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(["torchrun"], timeout or 0.0)
        return self.returncode

    def output(self, timeout: float | None = None) -> str:
        """What agent and ranks wrote until the agent ended."""
        try:
            self.wait(timeout)
        finally:
            self.kill()
        return self.log.read_text(errors="replace")

    def send_signal(self, number: signal.Signals) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def be_agent(
    options: list[str],
    program: Program,
    arguments: list[str],
    log: Path,
    environment: dict[str, str],
    directory: Path,
    on_loopback: bool,
) -> None:
    """What torchrun does, in a fresh fork."""
    # A session of its own: that is how its processes are found, and no signal to the tests reaches them.
    os.setsid()
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)

    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch
    from torch.distributed.run import config_from_args, parse_args

    if on_loopback:
        from qwen_megatron.parallel.loopback import rendezvous_options, stay_on_loopback

        stay_on_loopback(os.environ)
        options = [*rendezvous_options(), *options]
    args = parse_args([*options, "--start-method", "fork", "--run-path", program.__qualname__])
    if args.standalone:
        args.rdzv_backend, args.rdzv_endpoint, args.rdzv_id = "c10d", "localhost:0", f"{os.getpid()}-{time.time_ns()}"
    config, _, _ = config_from_args(args)
    # Ranks are forked by this process: what is here stays, collections need not look at it again.
    gc.freeze()
    multiprocessing.current_process().daemon = False
    try:
        elastic_launch(config=config, entrypoint=be_rank)(program, arguments)
    except ChildFailedError as error:
        print(error, file=sys.stderr)
        sys.exit(1)


def be_rank(program: Program, arguments: list[str]) -> None:
    """A rank, forked by the agent; its name tells the tests which one it is."""
    Path("/proc/self/comm").write_text(rank_name(int(os.environ["RANK"])))
    sys.argv = ["qwen-megatron", *arguments]
    if status := program(arguments):
        sys.exit(status)


def rank_name(rank: int) -> str:
    """The name of the process of a rank."""
    return f"rank {rank}"
