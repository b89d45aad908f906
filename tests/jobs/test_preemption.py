"""Leaving early: signals, the stop file, and one job a folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from qwen_megatron.checkpoint.run_lock import run_lock
from qwen_megatron.errors import CheckpointError
from qwen_megatron.train.hooks.preemption import SIGNALS, PreemptionHook
from tests.support.launch import ForkedAgent, Program, product
from tests.support.ranks import RankPool
from tests.support.training import SMALL, pretrain_job, pretrain_on_ranks, rows
from tests.train.test_hooks import make_run

PP2 = "parallel.pipeline_model_parallel_size=2"


def settings_of(corpus: Path, directory: Path) -> list[str]:
    """A run that would take minutes on two processes."""
    run = (f"data.blend=[{corpus}]", f"checkpoint.directory={directory}")
    return [*SMALL, *run, "training.train_iters=5000", "training.eval_interval=5000", PP2]


def wait_for_steps(job: ForkedAgent, log: Path, directory: Path, count: int) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        metrics = directory / "metrics.jsonl"
        if metrics.exists() and len([row for row in rows(directory) if "loss" in row]) >= count:
            return
        if job.poll() is not None:
            break
        time.sleep(0.05)
    job.kill()
    pytest.fail(f"no {count} steps in 90 s:\n{log.read_text()}")


def wait_until_said(job: ForkedAgent, words: str) -> None:
    deadline = time.monotonic() + 30
    while words not in job.log.read_text():
        assert time.monotonic() < deadline, job.log.read_text()
        time.sleep(0.05)


def signalled_job(overrides: list[str], rank: int, step: int) -> None:
    """Trains, with a SIGTERM to one rank in the middle of a step."""
    from qwen_megatron.train import step as step_module

    original, calls = step_module.measure_gradient, 0

    def measure(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == step and dist.get_rank() == rank:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    step_module.measure_gradient = measure
    try:
        pretrain_job(overrides)
    finally:
        step_module.measure_gradient = original


def test_a_signal_to_one_rank_ends_all_after_the_same_step(ranks: RankPool, byte_corpus: Path, tmp_path: Path) -> None:
    settings = (*SMALL, f"data.blend=[{byte_corpus}]", PP2)
    directory = tmp_path / "run"
    # No rank raises, and the last one, which has no folder to look at, was the only one to know.
    ranks.run(2, signalled_job, overrides=[*settings, f"checkpoint.directory={directory}"], rank=1, step=5)
    assert json.loads((directory / "completion.json").read_text()) == {"reason": "SIGTERM", "step": 5}
    assert (directory / "iter_0000005" / "manifest.json").exists()
    halves = pretrain_on_ranks(ranks, 2, byte_corpus, directory, PP2, "training.exit_iter=8")
    whole = pretrain_on_ranks(ranks, 2, byte_corpus, tmp_path / "whole", PP2, "training.exit_iter=8")
    assert {n: row["loss_hex"] for n, row in halves.items()} == {n: row["loss_hex"] for n, row in whole.items()}
    assert list(halves) == list(range(1, 9))


def test_a_stop_file_ends_the_run(byte_corpus: Path, tmp_path: Path) -> None:
    job = agent(byte_corpus, tmp_path)
    wait_for_steps(job, job.log, tmp_path / "run", 2)
    (tmp_path / "run" / "stop").touch()
    output = job.output(timeout=30)
    assert job.returncode == 0, output
    assert json.loads((tmp_path / "run" / "completion.json").read_text())["reason"] == "stop file"


def agent(corpus: Path, folder: Path, *overrides: str, program: Program = product) -> ForkedAgent:
    """torchrun's agent with two ranks of a long run."""
    return ForkedAgent(
        ["--standalone", "--nproc-per-node", "2"],
        program,
        ["pretrain", *settings_of(corpus, folder / "run"), *overrides],
        log=folder / "log",
        environment=os.environ,
        directory=folder,
    )


def interrupted(directory: Path) -> int:
    """The step after which a run left that has got Ctrl-C; its rows and its checkpoint are whole."""
    completion = json.loads((directory / "completion.json").read_text())
    step: int = completion["step"]
    assert completion["reason"] == "SIGINT"
    assert [row["step"] for row in rows(directory) if "loss" in row] == list(range(1, step + 1))
    assert (directory / f"iter_{step:07d}" / "manifest.json").exists()
    return step


def test_a_first_ctrl_c_finishes_the_step_and_saves(byte_corpus: Path, tmp_path: Path) -> None:
    """Through torchrun's agent, which passes the signal on to its processes' own sessions."""
    job = agent(byte_corpus, tmp_path)
    wait_for_steps(job, job.log, tmp_path / "run", 2)
    job.send_signal(signal.SIGINT)
    wait_until_said(job, ": SIGINT\n")
    # An agent that starts functions instead of commands waits for them for its whole 30 s.
    job.kill()
    output = job.log.read_text()
    step = interrupted(tmp_path / "run")
    assert f"left after step {step}: SIGINT" in output
    assert output.count("once more leaves at once") == 1


def slow(arguments: Sequence[str]) -> int:
    """`product`, whose second step takes a minute."""
    from qwen_megatron.jobs.pretrain import Pretraining
    from qwen_megatron.train.job import StepOutcome
    from qwen_megatron.train.run import Run

    original = Pretraining.step

    def step(self: Pretraining, run: Run) -> StepOutcome:
        if run.state.iteration == 1:
            time.sleep(60)
        return original(self, run)

    Pretraining.step = step  # type: ignore[method-assign]
    return product(arguments)


def test_a_second_ctrl_c_leaves_at_once(byte_corpus: Path, tmp_path: Path) -> None:
    job = agent(byte_corpus, tmp_path, program=slow)
    wait_for_steps(job, job.log, tmp_path / "run", 1)
    job.send_signal(signal.SIGINT)
    wait_until_said(job, "once more leaves at once")
    job.send_signal(signal.SIGINT)
    # Far less than the step takes, or the agent's patience with its processes.
    job.output(timeout=15)
    assert not (tmp_path / "run" / "completion.json").exists()
    assert not list((tmp_path / "run").glob("iter_*"))


@pytest.fixture
def hook(tmp_path: Path) -> Iterator[PreemptionHook]:
    """One that listens for signals of this process."""
    made = PreemptionHook()
    yield made
    made.close()


def test_ctrl_c_is_left_to_the_kernel_after_the_first(hook: PreemptionHook, tmp_path: Path) -> None:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    hook.on_start(make_run(tmp_path))
    signal.raise_signal(signal.SIGINT)
    assert hook.received == signal.SIGINT
    # torchrun makes SIGTERM of the second one.
    assert {signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} == {signal.SIG_DFL}
    hook.close()
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


def test_a_signal_that_is_ignored_stays_ignored(hook: PreemptionHook, tmp_path: Path) -> None:
    """As a shell without job control has it for what it starts in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        hook.on_start(make_run(tmp_path))
        signal.raise_signal(signal.SIGINT)
        assert hook.received is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_run_to_the_end_says_so(ranks: RankPool, byte_corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "stop").touch()  # left over from an earlier part
    pretrain_on_ranks(ranks, 1, byte_corpus, tmp_path, "training.exit_iter=2")
    assert json.loads((tmp_path / "completion.json").read_text()) == {"reason": "finished", "step": 2}


def test_a_second_job_in_the_folder_is_refused(tmp_path: Path) -> None:
    refusal = f"process {os.getpid()} on .* is training in this folder"
    with run_lock(tmp_path), pytest.raises(CheckpointError, match=refusal), run_lock(tmp_path):
        pytest.fail("two jobs in one folder")
    with run_lock(tmp_path):
        assert (tmp_path / "lock").exists()


def test_the_lock_of_a_dead_job_is_taken_over(tmp_path: Path) -> None:
    holder = (
        "import sys, time; from pathlib import Path; from qwen_megatron.checkpoint.run_lock import run_lock\n"
        "with run_lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    job = subprocess.Popen([sys.executable, "-c", holder, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert job.stdout is not None
    assert job.stdout.readline() == "held\n"
    with pytest.raises(CheckpointError, match=f"process {job.pid} on"), run_lock(tmp_path):
        pytest.fail("two jobs in one folder")
    job.kill()
    job.wait()
    with run_lock(tmp_path):
        assert str(os.getpid()) in (tmp_path / "lock").read_text()
