"""What the demos share: commands that are shown and timed, and the memory they take."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Stage:
    """One command that ran: title, wall time and what it printed."""

    title: str
    seconds: float
    output: str


class MemoryMeter(threading.Thread):
    """Samples the resident memory of this process and all below it."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_bytes = 0

    def run(self) -> None:
        while True:
            total = 0
            for process in psutil.Process().children(recursive=True):
                try:
                    total += process.memory_info().rss
                except psutil.Error:
                    continue
            self.peak_bytes = max(self.peak_bytes, total)
            time.sleep(0.5)


def run(console: Console, title: str, *command: str, typed: str | None = None) -> Stage:
    """Shows a command, runs it with its output passed through, and stops the demo if it fails.

    Args:
        console: Where the command is shown.
        title: Of the stage.
        command: Program and arguments.
        typed: What is typed to it.
    """
    console.rule(f"[bold]{title}")
    console.print(f"$ {shlex.join(command)}", style="dim", highlight=False, soft_wrap=True)
    started = time.perf_counter()
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    lines = []
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdin=None if typed is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        if typed is not None:
            assert process.stdin is not None
            process.stdin.write(typed)
            process.stdin.close()
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode:
        console.print(f"[red]{title}: stopped with exit status {process.returncode}")
        sys.exit(1)
    return Stage(title, time.perf_counter() - started, "".join(lines))


def times(stages: list[Stage]) -> str:
    """How long all took together, and each."""
    return f"{sum(s.seconds for s in stages):.0f} s: {', '.join(f'{s.title} {s.seconds:.0f}' for s in stages)}"
