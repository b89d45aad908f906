"""A rank is killed in the middle of a step; torchrun starts the job again, and not one bit changes."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from tests.faults.job import LONG, TP2_PP2, Job, assert_bitwise
from tests.support.ranks import RankPool
from tests.support.training import pretrain_on_ranks

# Steps between two kills: more than a job goes on while the kill is under way.
APART = 10
LAYOUTS = {"dp2": (2, ()), "tp2-pp2": (4, TP2_PP2)}


def kill_ranks(job: Job, kills: int, seed: int) -> list[str]:
    """Kills seeded ranks at seeded moments; returns where, in words."""
    drawn, points = random.Random(seed), []
    for number in range(1, kills + 1):
        step = number * APART + drawn.randrange(4)
        job.wait_for_step(step)
        workers = job.workers()
        rank, share = drawn.choice(sorted(workers)), drawn.random()
        time.sleep(share * job.rows()[step]["step_seconds"])
        workers[rank].send_signal(signal.SIGKILL)
        points.append(f"rank {rank} after step {max(job.rows())}")
    return points


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
        points = kill_ranks(job, kills, seed=kills)
        assert job.wait() == 0, job.output()
    undisturbed = pretrain_on_ranks(ranks, processes, byte_corpus, tmp_path / "whole", *settings, base=LONG)
    assert_bitwise(job.rows(), undisturbed)
    assert job.output().count("parameters on cpu") == kills + 1
    print(f"\n{layout}: {kills} ranks killed mid-step, {len(undisturbed)} steps bitwise ({'; '.join(points)})")
