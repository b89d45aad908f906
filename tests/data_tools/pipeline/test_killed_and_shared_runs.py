"""Runs that are killed, runs beside each other, and array jobs that share one."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_tools.corpus.lock import corpus_lock
from data_tools.corpus.verify import verify
from data_tools.engine.executor import InProcessExecutor
from data_tools.engine.runner import Runner, Share
from data_tools.engine.task import Task, read_manifest
from data_tools.errors import DataError
from data_tools.pipeline.pipeline_file import load_pipeline
from data_tools.stages import tokenize as tokenize_stage
from tests.data_tools.pipeline.small_pipelines import contents, english, pipelines_in, run, write_input


@pytest.fixture
def write_pipeline(tmp_path: Path) -> Callable[..., Path]:
    return pipelines_in(tmp_path)


def command(path: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "data_tools", "run", str(path), *options]


def num_finished(output: Path) -> int:
    """Manifests of tasks so far."""
    return len(list(output.rglob("*.manifest.json")))


def test_killed_runs_end_in_the_same_bytes(tmp_path: Path, write_pipeline: Callable[..., Path]) -> None:
    """Killed when a tenth, two and three fifths of the tasks are finished, each time going on from there."""
    write_input(tmp_path / "web.jsonl", [english(number % 700) for number in range(1000)])
    run(write_pipeline(output="undisturbed"))
    num_tasks = num_finished(tmp_path / "undisturbed")
    assert num_tasks > 60
    path = write_pipeline(output="killed")
    for share in (0.1, 0.4, 0.6):
        process = subprocess.Popen(command(path, "--workers", "2"), stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while num_finished(tmp_path / "killed") < share * num_tasks:
            assert process.poll() is None, "it ended before the kill"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    assert run(path).tasks_done > 0
    undisturbed, killed = contents(tmp_path / "undisturbed"), contents(tmp_path / "killed")
    assert undisturbed.keys() == killed.keys()
    assert {name for name in killed if killed[name] != undisturbed[name]} == set()


def test_four_runs_on_one_output(tmp_path: Path, write_pipeline: Callable[..., Path]) -> None:
    write_input(tmp_path / "web.jsonl", [english(number) for number in range(200)])
    path = write_pipeline()
    first = subprocess.Popen(command(path), stdout=subprocess.DEVNULL)
    lock = tmp_path / "out/run.lock"
    deadline = time.monotonic() + 60
    while not (lock.exists() and lock.read_bytes()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)  # It holds the lock for as long as the others need.
    try:
        others = [
            subprocess.Popen(command(path), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            for _ in range(3)
        ]
        errors = [process.communicate(timeout=60)[1] for process in others]
    finally:
        first.send_signal(signal.SIGCONT)
    assert [process.returncode for process in others] == [1, 1, 1]
    assert all(f"process {first.pid} on " in error for error in errors)
    assert first.wait(120) == 0
    assert verify(tmp_path / "out/corpora/web").num_documents == 200


def test_a_whole_run_and_shards_keep_each_other_out(tmp_path: Path, write_pipeline: Callable[..., Path]) -> None:
    write_input(tmp_path / "web.jsonl", [english(number) for number in range(20)])
    path, prefix = write_pipeline(), tmp_path / "out/run"
    prefix.parent.mkdir()
    with corpus_lock(prefix), pytest.raises(DataError, match=rf"run\.lock: process {os.getpid()} on .* is writing"):
        run(path, share=Share(0, 1))
    with corpus_lock(prefix, shared=True):
        with pytest.raises(DataError, match=r"run\.lock: a run with --shard is writing this corpus"):
            run(path)
        run(path, share=Share(0, 1))
        with pytest.raises(DataError, match="run with --shard"):  # One shard's end does not let a whole run in.
            run(path)
    run(path)
    assert verify(tmp_path / "out/corpora/web").num_documents == 20


def test_array_jobs_share_the_work(tmp_path: Path, write_pipeline: Callable[..., Path]) -> None:
    write_input(tmp_path / "web.jsonl", [english(number % 90) for number in range(120)])
    run(write_pipeline(output="alone"))
    path = write_pipeline(output="shared")
    processes = [subprocess.Popen(command(path, "--shard", f"{number}/3", "--workers", "1")) for number in range(3)]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    alone, shared = contents(tmp_path / "alone"), contents(tmp_path / "shared")
    assert {name for name, content in alone.items() if shared.get(name) != content} == set()


def test_a_shard_that_comes_late_takes_the_corpus_as_it_is(
    tmp_path: Path, write_pipeline: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_input(tmp_path / "web.jsonl", [english(number % 90) for number in range(120)])
    path = write_pipeline()
    run(path, share=Share(0, 1))
    folder = tmp_path / "out" / "stages" / "03-exact_dedup"
    parts = [read_manifest(folder, one.name.split(".")[0]) for one in sorted(folder.glob("*.manifest.json"))]
    sealed, hidden = tmp_path / "out" / "corpora" / "web.manifest.json", tmp_path / "hidden.json"
    sealed.rename(hidden)
    gather = tokenize_stage.gather_runs

    def gather_late(*arguments: Any, **options: Any) -> Any:
        # Between this job's look at what is finished and its gathering, another has sealed the corpus.
        hidden.rename(sealed)
        return gather(*arguments, **options)

    monkeypatch.setattr(tokenize_stage, "gather_runs", gather_late)
    runner = Runner(InProcessExecutor(), Share(1, 1000), wait_seconds=0.5)
    (corpus,) = load_pipeline(path).stages[3].stage.run(runner, folder.parent / "04-tokenize", parts)
    assert verify(corpus.values["prefix"]).num_documents == 90


def test_a_bug_while_a_part_is_finished_ends_its_worker() -> None:
    code = (
        "import multiprocessing\n"
        "from data_tools.engine.executor import _send_result, _Sender\n"
        "_send_result(_Sender(multiprocessing.Pipe()[0]), lambda: 1 / 0)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert "ZeroDivisionError" in result.stderr


def test_a_shard_that_waits_in_vain_says_for_whom(tmp_path: Path, write_pipeline: Callable[..., Path]) -> None:
    task = Task(operation="read", folder=str(tmp_path / "f"), name="part-000000", options={}, inputs=())
    runner = Runner(InProcessExecutor(), Share(1, 2), wait_seconds=0)
    with pytest.raises(DataError, match="part-000000: another shard has not finished it"):
        runner.run(tmp_path / "f", [task])
