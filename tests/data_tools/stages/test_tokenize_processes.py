"""Tokenizing among processes: one writer, interrupts, killed workers and parents."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import orjson
import psutil  # type: ignore[import-untyped]
import pytest

from data_tools.corpus.lock import corpus_lock
from data_tools.errors import DataError


def visible_and_hidden(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def wait_until_at_work(folder: Path) -> None:
    """Until a worker has begun its first part of the corpus `c` in ``folder``."""
    deadline = time.monotonic() + 30
    while not list(folder.glob(".c.work/runs/.*.tmp")):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _hold(
    prefix: Path, held: "multiprocessing.synchronize.Event", release: "multiprocessing.synchronize.Event"
) -> None:
    with corpus_lock(prefix):
        held.set()
        release.wait(30)


def test_second_writer_is_refused_and_the_holder_named(make_corpus: Callable[..., Path], tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    held, release = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(tmp_path / "corpus", held, release))
    holder.start()
    try:
        assert held.wait(30)
        with pytest.raises(DataError, match=rf"corpus\.lock: process {holder.pid} on .* is writing this corpus"):
            make_corpus()
        assert not (tmp_path / "corpus.json").exists()
    finally:
        holder.kill()
        holder.join()
    make_corpus()  # The kernel took the lock from the dead holder.
    assert not (tmp_path / "corpus.lock").exists()


def test_leftovers_of_a_killed_run_are_removed(make_corpus: Callable[..., Path], tmp_path: Path) -> None:
    leftovers = [
        tmp_path / ".corpus.scratch-abc/corpus.idx",
        tmp_path / ".corpus.work/runs/part-000007.run-0000.tokens",
    ]
    for leftover in leftovers:
        leftover.parent.mkdir(parents=True, exist_ok=True)
        leftover.write_bytes(b"x")
    make_corpus()
    assert visible_and_hidden(tmp_path) == {f"corpus.{suffix}" for suffix in ("bin", "idx", "crc", "json", "jsonl")}


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_run_without_a_finished_part_leaves_nothing(
    tmp_path: Path, workers: int, number: signal.Signals, status: int
) -> None:
    source = tmp_path / "large.jsonl"
    line = orjson.dumps({"text": "0123456789 lorem ipsum\n" * 40_000}) + b"\n"
    source.write_bytes(line * 60)  # Several seconds of work for the reference encoder.
    process = subprocess.Popen(
        [sys.executable, "-m", "data_tools", "tokenize", str(source), "--output", str(tmp_path / "c")]
        + ["--workers", str(workers), "--encoder", "tiktoken"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_until_at_work(tmp_path)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # As a terminal does.
    else:
        process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == status
    assert "Traceback" not in errors, errors
    assert visible_and_hidden(tmp_path) == {"large.jsonl"}


@pytest.mark.parametrize("delay_seconds", [0.0, 0.3])
def test_killed_worker_is_an_error(tmp_path: Path, write_jsonl: Callable[..., Path], delay_seconds: float) -> None:
    texts = ["lorem ipsum " * 20_000] * 100
    code = (
        "import os, signal, sys, threading, time, psutil\n"
        "from data_tools.cli import main\n"
        "def kill_first_worker():\n"
        "    while True:\n"
        "        servers = [c for c in psutil.Process().children() if 'forkserver' in ' '.join(c.cmdline())]\n"
        "        workers = [worker for server in servers for worker in server.children()]\n"
        "        if workers:\n"
        "            time.sleep(float(sys.argv[3]))\n"
        "            return workers[0].kill()\n"
        "        time.sleep(0.01)\n"
        "if __name__ == '__main__':\n"
        "    threading.Thread(target=kill_first_worker, daemon=True).start()\n"
        "    options = ['--workers', '2', '--encoder', 'tiktoken']\n"
        "    sys.exit(main(['tokenize', sys.argv[1], '--output', sys.argv[2], *options]))\n"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    result = subprocess.run(
        [sys.executable, str(script), str(write_jsonl(texts)), str(tmp_path / "c"), str(delay_seconds)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1
    assert "worker process was killed" in result.stderr.splitlines()[-1]
    assert visible_and_hidden(tmp_path) == {"run.py", "input.jsonl"}


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    source = tmp_path / "large.jsonl"
    source.write_bytes((orjson.dumps({"text": "0123456789 lorem ipsum\n" * 40_000}) + b"\n") * 60)
    process = subprocess.Popen(
        [sys.executable, "-m", "data_tools", "tokenize", str(source), "--output", str(tmp_path / "c")]
        + ["--workers", "2", "--encoder", "tiktoken"]
    )
    wait_until_at_work(tmp_path)
    (server,) = [one for one in psutil.Process(process.pid).children() if "forkserver" in " ".join(one.cmdline())]
    workers = server.children()
    assert len(workers) == 2
    process.kill()
    process.wait(30)
    assert psutil.wait_procs([server, *workers], timeout=30)[1] == []
