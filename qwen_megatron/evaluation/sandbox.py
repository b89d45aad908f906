"""Runs programs that a model wrote: in a process of their own, confined, for a short time, in a folder that is removed.

What is promised, and what is not, stands in docs/evaluation.md.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from qwen_megatron.errors import PlatformError
from qwen_megatron.evaluation import confinement

# How often time and folder are looked at while nothing is printed.
TICK_SECONDS = 0.05
# What the standard library loads shared objects and time zones from, beside its own folder.
SYSTEM_PATHS = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo")


@dataclass(frozen=True)
class Limits:
    """What a program may use; beyond it, it has failed.

    Attributes:
        seconds: From its start, on the clock; processor time is limited to the same, rounded up.
        memory_bytes: Of address space.
        file_bytes: Of one file.
        folder_bytes: Of all its files.
        output_bytes: Printed, both streams together.
    """

    seconds: float = 10.0
    memory_bytes: int = 1 << 30
    file_bytes: int = 8 << 20
    folder_bytes: int = 32 << 20
    output_bytes: int = 1 << 20


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Attributes:
        passed: It ran to its last line.
        reason: "passed", or what stopped it: an error's last line, or which limit.
    """

    passed: bool
    reason: str


def run_program(text: str, limits: Limits | None = None) -> Outcome:
    """Runs a Python program, confined, and tells whether it came to its end.

    Args:
        text: The program with its tests: a failed test must raise.
        limits: What it may use.
    Raises:
        PlatformError: if this machine cannot confine it; nothing was run.
    """
    limits = limits or Limits()
    with tempfile.TemporaryDirectory(prefix="qwen-code-", ignore_cleanup_errors=True) as folder:
        # Not in the program's own folder, which a program may look through.
        program = Path(folder, "program.py")
        # A lone surrogate has no UTF-8 form: such a program fails like any other that is no Python.
        program.write_bytes(text.encode("utf-8", errors="surrogatepass"))
        work = Path(folder, "work")
        work.mkdir()
        return _run(program, work, limits)


def check_sandbox() -> None:
    """Tries on this machine whether a program is kept from what it must not do.

    Raises:
        PlatformError: if it is not, with what a program could do.
    """
    with tempfile.TemporaryDirectory(prefix="qwen-probe-") as folder:
        Path(folder, "secret").write_text("x", encoding="utf-8")
        outcome = run_program(PROBE.format(outside=folder))
    if not outcome.passed:
        raise PlatformError(
            f"generated code cannot be confined on this machine ({outcome.reason}); nothing was run. "
            "Evaluate without code tasks, or on a machine with Linux 5.13 or newer and Landlock"
        )


PROBE = """
import os, socket
def try_(name, action):
    try:
        action()
    except OSError:
        return
    raise SystemExit("a program can " + name)
try_("read files of others", lambda: open({outside!r} + "/secret"))
try_("write outside of its folder", lambda: open({outside!r} + "/new", "w"))
try_("remove files outside of its folder", lambda: os.remove({outside!r} + "/secret"))
try_("open a socket", socket.socket)
try_("start a process", os.fork)
try_("send signals", lambda: os.kill(os.getppid(), 0))
"""


def _run(program: Path, work: Path, limits: Limits) -> Outcome:
    word = secrets.token_hex(16).encode()
    word_reader, word_writer = os.pipe()
    verdict_reader, verdict_writer = os.pipe()
    try:
        os.write(word_writer, word)
        os.close(word_writer)
        process = _start(program, work, limits, word_reader, verdict_writer)
    finally:
        os.close(word_reader)
        os.close(verdict_writer)
    with os.fdopen(verdict_reader, "rb") as verdict, process:
        try:
            stopped, output = _watch(process, work, limits)
        finally:
            # It has no children, and is killed with whatever is in its group all the same.
            _kill(process)
        said = verdict.read(len(confinement.CONFINED) + len(word) + 1)
    return _outcome(process.returncode, said, word, stopped, output)


def _start(program: Path, work: Path, limits: Limits, word: int, verdict: int) -> subprocess.Popen[bytes]:
    paths = sysconfig.get_paths()
    order = {
        "program": str(program),
        "folder": str(work),
        "readable": [paths["stdlib"], paths["platstdlib"], *SYSTEM_PATHS, str(program)],
        "word": word,
        "verdict": verdict,
        "memory_bytes": limits.memory_bytes,
        "cpu_seconds": int(limits.seconds) + 1,
        "file_bytes": limits.file_bytes,
    }
    # -I: nothing of the user's and no folder in the module path; -S: the standard library alone; -B: no caches.
    command = [sys.executable, "-I", "-S", "-B", "-X", "utf8", confinement.__file__, json.dumps(order)]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=work,
        env={"TMPDIR": str(work), "HOME": str(work), "PYTHONHASHSEED": "0"},
        pass_fds=(word, verdict),
        start_new_session=True,
    )


def _watch(process: subprocess.Popen[bytes], work: Path, limits: Limits) -> tuple[str, bytes]:
    """Reads what is printed until the process ends or breaks a limit; ("" or which one, the last of the output)."""
    assert process.stdout is not None
    deadline = time.monotonic() + limits.seconds
    printed, kept = 0, b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if time.monotonic() > deadline:
                return f"ran longer than {limits.seconds:g} s", kept
            if _folder_bytes(work) > limits.folder_bytes:
                return f"wrote more than {limits.folder_bytes} bytes", kept
            if not selector.select(TICK_SECONDS):
                continue
            piece = _read(process.stdout)
            if not piece:
                break
            printed, kept = printed + len(piece), (kept + piece)[-4096:]
            if printed > limits.output_bytes:
                return f"printed more than {limits.output_bytes} bytes", kept
    try:
        # It may have closed its streams and go on.
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return f"ran longer than {limits.seconds:g} s", kept
    return "", kept


def _read(stream: IO[bytes]) -> bytes:
    return os.read(stream.fileno(), 1 << 16)


def _folder_bytes(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(root, name)).st_size
            except FileNotFoundError:
                continue
    return total


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _outcome(status: int, said: bytes, word: bytes, stopped: str, output: bytes) -> Outcome:
    lines = output.decode("utf-8", errors="replace").strip().splitlines()
    last = lines[-1][:300] if lines else ""
    if not said.startswith(confinement.CONFINED):
        if stopped:
            return Outcome(False, stopped)
        raise PlatformError(
            f"generated code cannot be confined on this machine ({last or f'exit status {status}'}); nothing was run. "
            "Evaluate without code tasks, or on a machine with Linux 5.13 or newer and Landlock"
        )
    if said == confinement.CONFINED + word:
        return Outcome(True, "passed")
    if stopped:
        return Outcome(False, stopped)
    if status == -signal.SIGXCPU:
        return Outcome(False, "used more processor time than allowed")
    if last.startswith("MemoryError"):
        return Outcome(False, "used more memory than allowed")
    # Of a program that raised; others may have printed anything.
    return Outcome(False, last if last and status == 1 else f"ended before its last line, with exit status {status}")
