"""What a rank tells about itself and learns about the others, without a job."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from qwen_megatron.config.sections.parallel import ParallelConfig
from qwen_megatron.jobs.peers import has_ended, identity_of, in_words, is_of, machine, numbered, read_beats
from qwen_megatron.jobs.watchdog import Watchdog
from qwen_megatron.train.step_timers import StepTimers

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
    return SimpleNamespace(state=SimpleNamespace(iteration=iteration), timers=StepTimers())


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
    watches[0].give_up("no progress in other within 400 s")
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
    for activity, seconds in (("evaluation", 200), ("saving", 300), ("weight consistency", 100)):
        with run.timers.enter(activity), run.timers.enter("communication"):
            position = one.position()
            assert (position.phase, position.activity) == ("communication", activity)
            assert one.limit(position) == seconds
    assert LIMITS.collective_timeout_seconds == 430


class StandInStore:
    """A dictionary that stands in for the job's store and counts requests; `fails_after` of them it is gone."""

    def __init__(self, fails_after: int = 10**9) -> None:
        self.content: dict[str, bytes] = {}
        self.requests = 0
        self.fails_after = fails_after

    def clone(self) -> StandInStore:
        return self

    def set_timeout(self, timeout: object) -> None:
        """Nothing here takes time."""

    def count(self) -> None:
        self.requests += 1
        if self.requests > self.fails_after:
            raise dist.DistNetworkError("gone")

    def set(self, key: str, value: str) -> None:
        self.count()
        self.content[key] = value.encode()

    def add(self, key: str, number: int) -> int:
        self.count()
        self.content[key] = str(int(self.content.get(key, b"0")) + number).encode()
        return int(self.content[key])

    def check(self, keys: list[str]) -> bool:
        self.count()
        return all(key in self.content for key in keys)

    def get(self, key: str) -> bytes:
        self.count()
        if key not in self.content:
            raise dist.DistStoreError("wait timeout")
        return self.content[key]

    def multi_get(self, keys: list[str]) -> list[bytes]:
        self.count()
        return [self.content[key] for key in keys]


def report_of_all(monkeypatch: pytest.MonkeyPatch, world_size: int, absent: set[int]) -> tuple[int, list[str]]:
    """Every rank but the absent ones and a silent one reports; requests, and what each said."""
    store: Any = StandInStore()
    watches = [Watchdog(store, rank, world_size, LIMITS, pytest.fail) for rank in range(world_size)]
    now = 0.0

    def beat_all(ranks: set[int]) -> None:
        requests = store.requests
        for rank in ranks:
            watches[rank].beat("forward", watches[rank].position())
        store.requests = requests

    def sleep(seconds: float) -> None:
        """Time passes for those that look; the others beat."""
        nonlocal now
        now += seconds
        beat_all(present - {5})

    present = set(range(world_size)) - absent
    beat_all(present)
    clock = SimpleNamespace(monotonic=lambda: now, time=time.time, sleep=sleep)
    monkeypatch.setattr("qwen_megatron.jobs.peers.time", clock)
    monkeypatch.setattr("qwen_megatron.jobs.peers.PAUSE_SECONDS", 1.0)
    told = [watches[rank].describe_peers() for rank in sorted(present - {5})]
    return store.requests, told


@pytest.mark.parametrize("world_size", [8, 128, 1024])
@pytest.mark.parametrize("absent", [set(), {2}], ids=["all known", "one absent"])
def test_a_report_of_the_whole_job_takes_a_few_requests_a_rank(
    monkeypatch: pytest.MonkeyPatch, world_size: int, absent: set[int]
) -> None:
    requests, told = report_of_all(monkeypatch, world_size, absent)
    print(f"\n{world_size} ranks, {len(absent)} absent: {requests} requests")
    # When every rank asked for every other, one by one and twice, it was 4 x 1024 x 1024.
    assert requests <= 3 * world_size + 250
    assert requests < 5000
    assert len(told) == world_size - 1 - len(absent)
    for text in told:
        assert text.count("is silent") == text.count("rank 5 (") == 1
        assert text.count("never been heard of") == len(absent)
    assert all(text.startswith("as another rank found, ") for text in told[3:])


def test_all_ranks_absent_is_still_a_few_thousand_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    store: Any = StandInStore()
    beats = read_beats(store, range(1024))
    assert (len(beats.known), len(beats.absent), len(beats.unknown)) == (0, 1024, 0)
    assert store.requests < 2100


@pytest.mark.parametrize("fails_after", range(6))
def test_unknown_is_not_never_heard_of(fails_after: int) -> None:
    """The store answers for a while, and then no more."""
    store: Any = StandInStore()
    for rank in range(200):
        if rank != 150:
            one = Watchdog(store, rank, 200, LIMITS, pytest.fail)
            one.beat("forward", one.position())
    store.requests, store.fails_after = 0, fails_after
    beats = read_beats(store, range(200))
    assert beats.absent <= {150}
    assert beats.unknown == set(range(200)) - beats.known.keys() - beats.absent
    assert beats.unknown
    text = in_words(beats, {})
    assert "heard of" not in text
    assert "nothing is known of ranks " in text
    assert "every rank is alive" not in text


def test_a_store_that_is_gone_stops_nobody_and_accuses_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen_megatron.jobs.watchdog.BEAT_SECONDS", 0.05)
    store: Any = StandInStore(fails_after=0)
    with watch(store, 0) as one:
        time.sleep(0.2)
        assert one.describe_peers() == "the job's store does not answer, nothing is known of the other ranks"


@pytest.mark.parametrize("garbage", [b"", b"[]", b"{}", b'{"beat": 3}', b"[" * 100_000, b"\xff"])
def test_a_beat_that_is_none_is_unknown(garbage: bytes) -> None:
    store: Any = StandInStore()
    store.content = {"beat/0": garbage}
    beats = read_beats(store, range(2))
    assert (beats.unknown, beats.absent) == ({0}, {1})


def test_a_killed_process_is_named_at_once_and_nobody_else(store: dist.Store) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    watches = [watch(store, rank) for rank in range(3)]
    watches[1].identity = identity_of(child.pid)
    for one in watches:
        one.follow(make_run(16))
        one.beat("forward", one.position())
    child.kill()
    started = time.monotonic()
    told = watches[0].describe_peers()
    # A zombie until its parent looks; then there is no such process.
    child.wait()
    again = watches[2].describe_peers()
    assert time.monotonic() - started < 1.0
    for text in (told, again):
        assert re.match(
            r"rank 1 \(\S+, process \d+\) has ended without a word, it was last in forward of step 17, 0 s ago; ",
            text,
        ), text
        assert text.count("ended") == 1


def test_one_that_has_said_what_failed_is_named_at_once(store: dist.Store) -> None:
    watches = [watch(store, rank) for rank in range(3)]
    for one in watches:
        one.follow(make_run(16))
        one.beat("forward", one.position())
    watches[1].will_leave(failed=True)
    # It only lost a peer.
    watches[2].will_leave()
    started = time.monotonic()
    told = watches[0].describe_peers()
    assert time.monotonic() - started < 0.9
    assert re.match(
        r"rank 1 \(\S+, process \d+\) has failed by itself, it was last in other of step 17, 0 s ago; ", told
    )
    assert told.count("(") == 1


def test_one_that_has_told_before_it_ended_is_not_accused(store: dist.Store) -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    watches = [watch(store, rank) for rank in range(3)]
    watches[1].identity = identity_of(child.pid)
    child.wait()
    for one in watches:
        one.follow(make_run(16))
    with watches[2]:
        watches[1].leaving = True
        watches[1].beat("forward", watches[1].position())
        told = watches[0].describe_peers()
    assert told.startswith("every rank is alive; "), told


@pytest.mark.parametrize("identity", ["", "another-machine pid:[1] 1 5", "x", "no numbers at all here"])
def test_processes_of_other_machines_are_not_looked_for(identity: str) -> None:
    assert not is_of(machine(), identity)
    assert not is_of("", identity)
    assert not has_ended(identity_of(os.getpid()))
    assert is_of(machine(), identity_of(os.getpid()))
    # The number is another process's now.
    assert has_ended(identity_of(os.getpid()) + "1")


def test_ranks_are_counted_in_runs() -> None:
    assert numbered([3]) == "rank 3"
    assert numbered([1, 0]) == "ranks 0, 1"
    assert numbered([*range(5), 7, *range(9, 1024)]) == "ranks 0 to 4, 7, 9 to 1023"
