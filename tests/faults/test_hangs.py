"""A rank stops without a word: the others end soon, and say which one it was and what it did last."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import psutil
import pytest

from qwen_megatron.jobs.neighbours import GRACE_SECONDS
from tests.faults.job import TP2_PP2, Job
from tests.faults.sick_worker import Fault

SECONDS = 6
# Steps here are shorter than a beat: the rank is still for so long before it stops that one has told where it is.
STILL = 2.0
TIMEOUTS = tuple(f"parallel.{name}_timeout_seconds={SECONDS}" for name in ("step", "evaluation", "save"))
PLACES = {
    # Four held-out samples come first, then four micro-batches a step.
    "step": ("qwen_megatron.train.step:forward_step", 14, "forward of step 3"),
    # The first evaluation is before the first step.
    "evaluation": ("qwen_megatron.jobs.pretrain:evaluate", 2, "evaluation after step 3"),
    "save": ("qwen_megatron.checkpoint.save:Saver.save", 1, "saving after step 4"),
}


def is_stopped(job: Job, rank: int) -> bool:
    worker = job.workers().get(rank)
    return worker is not None and worker.status() == psutil.STATUS_STOPPED


@pytest.mark.parametrize(
    ("place", "layout"),
    [
        ("step", ("parallel.pipeline_model_parallel_size=2",)),
        pytest.param("evaluation", ("parallel.pipeline_model_parallel_size=2",), marks=pytest.mark.faults),
        pytest.param("save", ("parallel.pipeline_model_parallel_size=2",), marks=pytest.mark.faults),
    ],
)
def test_a_silent_rank_is_named(byte_corpus: Path, tmp_path: Path, place: str, layout: tuple[str, ...]) -> None:
    at, call, where = PLACES[place]
    fault = Fault(rank=1, at=at, calls=(call,), do="stop", seconds=STILL)
    settings = (*layout, *TIMEOUTS, "training.eval_interval=3", "checkpoint.save_interval=4")
    with Job(tmp_path / "run", byte_corpus, 2, *settings, faults=[fault]) as job:
        job.wait_until(lambda: is_stopped(job, 1), "rank 1 stops")
        pid, stopped = job.workers()[1].pid, time.monotonic()
        job.wait_until(lambda: 0 not in job.workers(), "rank 0 ends", seconds=60)
        took = time.monotonic() - stopped
        # torchrun would do this after 30 s.
        psutil.Process(pid).kill()
        assert job.wait() != 0
    output = job.output()
    assert SECONDS - STILL - 1 < took < SECONDS + 5, output
    silent = rf"rank 1 \(\S+, process {pid}\) is silent, it was last in {where}, \d+ s ago"
    assert re.search(rf"rank 0 .*: Stuck: no progress in .* within {SECONDS} s: {silent}", output), output
    failure = json.loads((tmp_path / "run" / "failure.json").read_text())
    assert failure["rank"] == 0
    assert re.search(silent, failure["message"])
    assert failure["restart_helps"] is True


@pytest.mark.faults
def test_a_silent_rank_is_named_among_four(byte_corpus: Path, tmp_path: Path) -> None:
    at, call, where = PLACES["step"]
    fault = Fault(rank=2, at=at, calls=(call,), do="stop", seconds=STILL)
    with Job(tmp_path / "run", byte_corpus, 4, *TP2_PP2, *TIMEOUTS, faults=[fault]) as job:
        job.wait_until(lambda: is_stopped(job, 2), "rank 2 stops")
        pid = job.workers()[2].pid
        job.wait_until(lambda: len(job.workers()) <= 1, "the others end", seconds=60)
        psutil.Process(pid).kill()
        job.wait()
    failure = json.loads((tmp_path / "run" / "failure.json").read_text())
    assert f"process {pid}) is silent, it was last in {where}" in failure["message"]
    # Only one rank is accused.
    assert failure["message"].count("is silent") == 1


def test_a_rank_that_never_joins_is_named(byte_corpus: Path, tmp_path: Path) -> None:
    fault = Fault(rank=1, at="qwen_megatron.jobs.session:join_job", do="sleep", seconds=3600)
    settings = ("parallel.pipeline_model_parallel_size=2", f"parallel.start_timeout_seconds={SECONDS}")
    with Job(tmp_path / "run", byte_corpus, 2, *settings, faults=[fault]) as job:
        assert job.wait() != 0
    assert re.search(rf"ranks 1 have not joined within {SECONDS} s; present: ranks 0 \(", job.output()), job.output()


def test_a_dead_rank_is_reported_by_one_whose_collective_does_not_notice(byte_corpus: Path, tmp_path: Path) -> None:
    # A stand-in for NCCL, whose collectives wait for ever for a rank that is no more: gloo's would fail.
    # The evaluation before the first step takes two micro-batches of each rank, a step one.
    dead = Fault(rank=1, at=PLACES["step"][0], calls=(5,), do="kill")
    waiting = Fault(rank=0, at=PLACES["step"][0], calls=(5,), do="sleep", seconds=3600)
    with Job(tmp_path / "run", byte_corpus, 2, "training.micro_batch_size=2", faults=[dead, waiting]) as job:
        job.wait_for_step(2)
        job.wait_until(lambda: 1 not in job.workers(), "rank 1 ends", seconds=20)
        started = time.monotonic()
        assert job.wait(60) != 0
        took = time.monotonic() - started
    assert GRACE_SECONDS - 2 < took < GRACE_SECONDS + 8, job.output()
    failure = json.loads((tmp_path / "run" / "failure.json").read_text())
    assert failure["rank"] == 0
    assert failure["lost_peer"]
    assert failure["restart_helps"]
    assert re.search(r"rank 1 \(\S+, process \d+\) has ended without a word, it was last in", failure["message"])
