"""Threads of a process, and how they wait."""

from __future__ import annotations

import os

import pytest

from qwen_megatron.config.load import load_config
from qwen_megatron.config.resolve import resolve
from qwen_megatron.jobs.launcher import Launch, let_waiting_threads_sleep
from qwen_megatron.jobs.session import num_threads

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("environment", "setting", "expected"),
    [
        ({}, [], 8),
        (TORCHRUN, [], 4),
        ({"OMP_NUM_THREADS": "3"}, [], 3),
        ({"OMP_NUM_THREADS": "1"}, [], 1),
        ({"OMP_NUM_THREADS": "6,2"}, [], 6),
        # torchrun's own, or that of a user who wants no notice of it.
        ({**TORCHRUN, "OMP_NUM_THREADS": "1"}, [], 4),
        ({**TORCHRUN, "OMP_NUM_THREADS": "2"}, [], 2),
        ({"OMP_NUM_THREADS": "many"}, [], 8),
        ({"OMP_NUM_THREADS": "0"}, [], 8),
        ({"OMP_NUM_THREADS": "9" * 400}, [], 8),
        ({**TORCHRUN, "OMP_NUM_THREADS": "2"}, ["parallel.threads=1"], 1),
        ({}, ["parallel.threads=5"], 5),
    ],
)
def test_threads_are_those_configured_or_set_or_a_share_of_the_cores(
    environment: dict[str, str], setting: list[str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    launch = Launch.from_environment(environment)
    config = resolve(load_config(None, ["model.preset=tiny", *setting]), launch.world_size)
    assert num_threads(config, launch) == expected


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_waiting_threads_sleep_unless_somebody_has_said_how_they_wait(name: str) -> None:
    environment: dict[str, str] = {}
    let_waiting_threads_sleep(environment)
    assert environment == {"OMP_WAIT_POLICY": "PASSIVE"}
    given = {name: "active"}
    let_waiting_threads_sleep(given)
    assert given == {name: "active"}
