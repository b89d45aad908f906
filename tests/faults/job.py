"""A job of torchrun's agent whose ranks can be killed, stopped and counted from outside."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from tests.faults import sick_worker
from tests.faults.sick_worker import FAULTS, Fault
from tests.support.launch import ForkedAgent
from tests.support.training import SMALL

MARK = "QWEN_MEGATRON_TEST_JOB"

# A step takes tens of milliseconds, of four micro-batches, and there are many of them.
LONG = (*SMALL, "training.micro_batch_size=1", "training.train_iters=5000", "training.eval_interval=5000")
TP2_PP2 = ("parallel.tensor_model_parallel_size=2", "parallel.pipeline_model_parallel_size=2")

# What must be equal in every bit, step by step.
BITWISE = ("loss_hex", "grad_norm", "learning_rate", "consumed_samples", "consumed_tokens")


class Job:
    """`torchrun -m qwen_megatron pretrain` on one machine, ended with everything it started when the block ends.

    Args:
        directory: Folder of the run.
        corpus: Prefix of its corpus.
        processes: Ranks.
        settings: `section.key=value` texts after those of `LONG`.
        max_restarts: How often torchrun starts the ranks again.
        faults: What the ranks do to themselves.
        command: Whether `qwen-megatron launch` starts agent and ranks as commands; otherwise they are forks of a
            process that has imported all that they need (tests/support/launch.py).
        on_loopback: Whether the forks meet as under that command.
    """

    def __init__(
        self,
        directory: Path,
        corpus: Path,
        processes: int,
        *settings: str,
        max_restarts: int = 0,
        faults: Sequence[Fault] = (),
        command: bool = False,
        on_loopback: bool = False,
    ):
        self.directory = directory
        self.mark = uuid.uuid4().hex
        self.log = directory.parent / f"{directory.name}.{self.mark[:8]}.log"
        options = ["--nproc-per-node", str(processes), "--max-restarts", str(max_restarts)]
        arguments = ["pretrain", *LONG, f"data.blend=[{corpus}]", f"checkpoint.directory={directory}", *settings]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TORCH")}
        root = Path(__file__).parents[2]
        environment |= {"PYTHONPATH": str(root)}
        environment |= {"OMP_NUM_THREADS": "1", MARK: self.mark, FAULTS: json.dumps([vars(fault) for fault in faults])}
        directory.parent.mkdir(parents=True, exist_ok=True)
        self.agent: ForkedAgent | subprocess.Popen[bytes]
        if not command:
            self.agent = ForkedAgent(
                options if on_loopback else ["--standalone", *options],
                sick_worker.main,
                arguments,
                log=self.log,
                environment=environment,
                directory=root,
                on_loopback=on_loopback,
            )
            return
        assert not faults
        launch = ["launch", "--processes", str(processes), "--max-restarts", str(max_restarts)]
        with self.log.open("wb") as stream:
            self.agent = subprocess.Popen(
                [sys.executable, "-m", "qwen_megatron", *launch, *arguments[1:]],
                env=environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=root,
            )

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        self.agent.kill()
        for process in self.processes():
            process.kill()
        self.agent.wait()

    def processes(self) -> list[psutil.Process]:
        """Every living process of the job, the agent and lost children included."""
        found = []
        for pid in psutil.pids():
            with contextlib.suppress(psutil.NoSuchProcess):
                if self.owns(pid):
                    found.append(psutil.Process(pid))
        return found

    def owns(self, pid: int) -> bool:
        """A rank that is a command has a session of its own and the job's mark; one that is forked has neither."""
        try:
            is_ours = os.getsid(pid) == self.agent.pid
            if not is_ours and isinstance(self.agent, ForkedAgent):
                return False
            process = psutil.Process(pid)
            is_ours = is_ours or process.environ().get(MARK) == self.mark
            return is_ours and process.status() != psutil.STATUS_ZOMBIE
        except (psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError, PermissionError):
            return False

    def workers(self) -> dict[int, psutil.Process]:
        """The living ranks."""
        found = {}
        for process in self.processes():
            try:
                if process.ppid() == self.agent.pid and (rank := rank_of(process)) is not None:
                    found[rank] = process
            except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
                continue
        return found

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def rows(self) -> dict[int, dict[str, Any]]:
        """Rows of steps so far, by step; the last row of a step counts."""
        path = self.directory / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        parsed = [json.loads(line) for line in lines if line.endswith("\n")]
        return {row["step"]: row for row in parsed if "loss" in row}

    def wait_until(self, condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
        """Raises AssertionError with the job's output if the job ends or the time passes first."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.agent.poll() is None, f"the job ended before {what}:\n{self.output()}"
            assert time.monotonic() < deadline, f"{what}: not after {seconds} s:\n{self.output()}"
            time.sleep(0.02)

    def wait_for_step(self, step: int, seconds: float = 120) -> None:
        self.wait_until(lambda: max(self.rows(), default=0) >= step, f"step {step}", seconds)

    def send(self, rank: int, number: signal.Signals) -> None:
        self.workers()[rank].send_signal(number)

    def wait(self, seconds: float = 180) -> int:
        """torchrun's exit status; everything the job started is gone then."""
        try:
            status = self.agent.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds} s:\n{self.output()}") from None
        assert self.processes() == [], self.output()
        return status


def rank_of(process: psutil.Process) -> int | None:
    """The rank of a process by its name, if it was forked, or by its environment."""
    named = re.fullmatch(r"rank (\d+)", Path(f"/proc/{process.pid}/comm").read_text().strip())
    text = named[1] if named else process.environ().get("RANK")
    return None if text is None else int(text)


def assert_bitwise(disturbed: dict[int, dict[str, Any]], undisturbed: dict[int, dict[str, Any]]) -> None:
    """Every step once, each equal to the undisturbed run's in every bit."""
    assert list(disturbed) == list(undisturbed)
    for step, row in undisturbed.items():
        assert {name: disturbed[step][name] for name in BITWISE} == {name: row[name] for name in BITWISE}, step
