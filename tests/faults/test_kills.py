"""A rank is killed in the middle of a step; torchrun starts the job again, and not one bit changes."""

from __future__ import annotations

import json
import random
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.job import LONG, TP2_PP2, Job, assert_bitwise
from tests.faults.sick_worker import Fault
from tests.support.ranks import RankPool
from tests.support.training import pretrain_on_ranks, rows

# Steps between two kills: more than a job goes on while the kill is under way.
APART = 10
LAYOUTS = {"dp2": (2, ()), "tp2-pp2": (4, TP2_PP2)}


@dataclass(frozen=True)
class Kill:
    """A rank that was killed, its process, and the step before."""

    rank: int
    pid: int
    step: int

    def __str__(self) -> str:
        return f"rank {self.rank} after step {self.step}"


def kill_ranks(job: Job, kills: int, seed: int) -> list[Kill]:
    """Kills seeded ranks at seeded moments."""
    drawn, points = random.Random(seed), []
    for number in range(1, kills + 1):
        step = number * APART + drawn.randrange(4)
        job.wait_for_step(step)
        workers = job.workers()
        rank, share = drawn.choice(sorted(workers)), drawn.random()
        time.sleep(share * job.rows()[step]["step_seconds"])
        workers[rank].send_signal(signal.SIGKILL)
        points.append(Kill(rank, workers[rank].pid, max(job.rows())))
    return points


def assert_named(job: Job, killed: list[Kill]) -> int:
    """The first line after at least 95 of 100 kills names the killed rank and accuses no other; so does the record.

    Returns:
        How many were named in both.
    """
    attempts = re.split(r"parameters on cpu", job.output())[1:]
    history = [json.loads(line) for line in (job.directory / "failures.jsonl").read_text().splitlines()]
    records = {record["attempt"]: record["message"] for record in history}
    named, others = 0, []
    for attempt, kill in enumerate(killed):
        line = next((line for line in attempts[attempt].splitlines() if line.startswith("qwen-megatron: rank ")), "")
        right = all(
            re.findall(r"rank (\d+) \(\S+, process (\d+)\) (?:has ended|is silent)", text)
            == [(str(kill.rank), str(kill.pid))]
            for text in (line, records.get(attempt, ""))
        )
        named += right
        others += [] if right else [f"{kill}: {line or 'no line'} | {records.get(attempt, 'no record')}"]
    assert named >= 0.95 * len(killed), "\n".join(others)
    return named


@pytest.mark.parametrize(
    ("layout", "kills"),
    [
        ("dp2", 2),
        pytest.param("dp2", 20, marks=pytest.mark.faults),
        pytest.param("tp2-pp2", 20, marks=pytest.mark.faults),
    ],
)
def test_killed_ranks_come_back_bitwise(
    ranks: RankPool, byte_corpus: Path, tmp_path: Path, layout: str, kills: int
) -> None:
    processes, settings = LAYOUTS[layout]
    # Kills fall before, at and after a save.
    settings = (*settings, f"training.exit_iter={(kills + 1) * APART}", "checkpoint.save_interval=7")
    with Job(tmp_path / "run", byte_corpus, processes, *settings, max_restarts=kills) as job:
        killed = kill_ranks(job, kills, seed=kills)
        assert job.wait() == 0, job.output()
    undisturbed = pretrain_on_ranks(ranks, processes, byte_corpus, tmp_path / "whole", *settings, base=LONG)
    assert_bitwise(job.rows(), undisturbed)
    assert job.output().count("parameters on cpu") == kills + 1
    # Peers of a killed rank, told to leave by torchrun, saved nothing of their own.
    saved = {int(folder.name.removeprefix("iter_")) for folder in (tmp_path / "run").glob("iter_*")}
    assert saved == {*range(7, len(undisturbed), 7), len(undisturbed)}
    named = assert_named(job, killed)
    points = "; ".join(map(str, killed))
    print(f"\n{layout}: {kills} ranks killed mid-step, {named} named, {len(undisturbed)} steps bitwise ({points})")


MIDDLES = {
    # Where, which call of the first start, and for how long it goes on there.
    "mid-step": ("qwen_megatron.train.step:forward_step", 30, 0.02),
    "mid-save": ("qwen_megatron.checkpoint.save:Saver.save", 2, 0.05),
    "in evaluation": ("qwen_megatron.jobs.pretrain:evaluate", 2, 0.02),
}
EVERYTHING = (
    *TP2_PP2,
    "parallel.sequence_parallel=true",
    "parallel.overlap_grad_reduce=true",
    "parallel.overlap_param_gather=true",
    "training.precision=bf16",
    "training.eval_interval=5",
    "checkpoint.save_interval=3",
    # A hash of all weights at every step.
    "logging.replica_check_interval=1",
)


def hashes(directory: Path) -> dict[int, str]:
    return {row["step"]: row["parameter_hash"] for row in rows(directory) if "parameter_hash" in row}


@pytest.mark.parametrize(
    ("places", "steps", "more"),
    [
        # Killed in the save after step 4, the job goes on from step 2.
        (("mid-save",), 5, ("checkpoint.save_interval=2", "training.micro_batch_size=2")),
        pytest.param(("mid-step", "mid-save", "in evaluation"), 12, (), marks=pytest.mark.faults),
    ],
    ids=["mid-save", "everywhere"],
)
def test_three_dimensions_sequence_parallel_overlapped_in_bf16(
    ranks: RankPool, byte_corpus: Path, tmp_path: Path, places: tuple[str, ...], steps: int, more: tuple[str, ...]
) -> None:
    """TP2 x PP2 with everything on: losses, samples and weights of every step are those of an undisturbed run."""
    faults, settings = [], (*EVERYTHING, *more, f"training.exit_iter={steps}")
    for attempt, place in enumerate(places):
        at, call, seconds = MIDDLES[place]
        faults.append(Fault(rank=3 - attempt, at=at, calls=(call,), do="kill", seconds=seconds, attempt=attempt))
    with Job(tmp_path / "run", byte_corpus, 4, *settings, max_restarts=len(places), faults=faults) as job:
        assert job.wait(300) == 0, job.output()
    assert job.output().count("parameters on cpu") == len(places) + 1, job.output()
    undisturbed = pretrain_on_ranks(ranks, 4, byte_corpus, tmp_path / "whole", *settings, base=LONG)
    assert_bitwise(job.rows(), undisturbed)
    assert hashes(tmp_path / "run") == hashes(tmp_path / "whole")
    assert list(hashes(tmp_path / "run")) == list(range(1, steps + 1))
    assert [row["consumed_samples"] for row in job.rows().values()] == [4 * step for step in range(1, steps + 1)]
    print(f"\ntp2-pp2, sequence parallel, overlap, bf16: killed {', '.join(places)}; {steps} steps and weights bitwise")
