"""What a rank tells about itself and learns about the others, without a job."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from qwen_megatron.config.parallel import ParallelConfig
from qwen_megatron.jobs.watchdog import Watchdog
from qwen_megatron.train.phases import Phases

LIMITS = ParallelConfig(
    world_size=3,
    start_timeout_seconds=400,
    step_timeout_seconds=100,
    evaluation_timeout_seconds=200,
    save_timeout_seconds=300,
)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[dist.Store]:
    monkeypatch.setattr("qwen_megatron.jobs.watchdog.BEAT_SECONDS", 0.05)
    monkeypatch.setattr("qwen_megatron.jobs.watchdog.SILENCE_SECONDS", 1.0)
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def make_run(iteration: int) -> Any:
    return SimpleNamespace(state=SimpleNamespace(iteration=iteration), timers=Phases())


def watch(store: dist.Store, rank: int) -> Watchdog:
    return Watchdog(store, rank, 3, LIMITS, pytest.fail)


def test_silent_ranks_are_told_from_those_that_wait_and_those_that_never_came(store: dist.Store) -> None:
    silent, waiting, run = watch(store, 1), watch(store, 0), make_run(16)
    silent.follow(run)
    with run.timers.enter("forward"):
        silent.beat("forward", silent.position())
    with waiting:
        waiting.follow(make_run(16))
        told = waiting.describe_peers()
    assert re.fullmatch(
        r"rank 1 \(\S+, process \d+\) is silent, it was last in forward of step 17, 1 s ago; "
        r"rank 2 has never been heard of; rank 0 in other of step 17",
        told,
    ), told


def test_where_nobody_is_silent_everybody_is_placed(store: dist.Store) -> None:
    watches = [watch(store, rank) for rank in range(3)]
    for rank, phase in enumerate(("communication", "communication", "data")):
        run = make_run(16)
        watches[rank].follow(run)
        run.timers.push(phase)
    with watches[0], watches[1], watches[2]:
        time.sleep(0.2)
        told = watches[2].describe_peers()
    assert told == "every rank is alive; ranks 0, 1 in communication of step 17; rank 2 in data of step 17"


def test_a_rank_that_has_left_is_not_silent(store: dist.Store) -> None:
    watches = [watch(store, rank) for rank in range(3)]
    for rank in (0, 1):
        with watches[rank]:
            watches[rank].follow(make_run(16))
    with watches[2]:
        time.sleep(0.2)
        told = watches[2].describe_peers()
    assert told == "every rank is alive; ranks 0, 1 gone after step 16; rank 2 in start-up"


def test_two_that_report_at_once_accuse_the_silent_one_and_not_each_other(store: dist.Store) -> None:
    watches = [watch(store, rank) for rank in range(3)]
    for one in watches:
        one.follow(make_run(16))
        one.beat("forward", one.position())
    with ThreadPoolExecutor(2) as pool:
        told = list(pool.map(Watchdog.describe_peers, watches[:2]))
    for text in told:
        assert re.findall(r"rank (\d) \(\S+, process \d+\) is silent", text) == ["2"], text


def test_one_that_gave_up_is_not_the_silent_one(store: dist.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(os, "_exit", lambda status: told.append(f"status {status}"))
    watches = [Watchdog(store, rank, 3, LIMITS, told.append) for rank in range(3)]
    for one in watches:
        one.follow(make_run(16))
        one.beat("forward", one.position())
    watches[0].give_up(watches[0].position())
    assert told[0].startswith("no progress in other within 400 s: rank 1 "), told
    assert told[1] == "status 1"
    watches[1].give_up(watches[1].position())
    assert "rank 0 (" not in told[2], told
    assert "rank 2 (" in told[2], told


def test_every_activity_has_its_time(store: dist.Store) -> None:
    one = watch(store, 0)
    assert one.limit(one.position()) == 400
    run = make_run(7)
    one.follow(run)
    with run.timers.enter("forward"):
        # The first step since the start, whatever its number.
        assert one.limit(one.position()) == 400
        run.state.iteration = 8
        assert one.limit(one.position()) == 100
    for activity, seconds in (("evaluation", 200), ("saving", 300), ("replica check", 100)):
        with run.timers.enter(activity), run.timers.enter("communication"):
            position = one.position()
            assert (position.phase, position.activity) == ("communication", activity)
            assert one.limit(position) == seconds
    assert LIMITS.collective_timeout_seconds == 430


def test_a_store_that_is_gone_stops_nobody(store: dist.Store) -> None:
    class Gone(dist.Store):
        def clone(self) -> dist.Store:
            return self

        def set_timeout(self, timeout: object) -> None:
            pass

        def set(self, key: str, value: str) -> None:
            raise dist.DistNetworkError("gone")

        def check(self, keys: list[str]) -> bool:
            raise dist.DistNetworkError("gone")

    with watch(Gone(), 0) as one:
        time.sleep(0.2)
        assert one.describe_peers().count("has never been heard of") == 3
