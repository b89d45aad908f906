"""Records of failures: the culprit's stays, and a start that cannot help is refused."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from qwen_megatron.config.load import load_config
from qwen_megatron.config.resolve import resolve
from qwen_megatron.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    PlatformError,
    ReaderDataError,
    ReaderFailed,
    ReplicaError,
    TrainingError,
)
from qwen_megatron.jobs.failure import (
    FAILURE,
    HISTORY,
    Failure,
    is_lost_peer,
    read_failure,
    refusal,
    restart_helps,
    retire_failure,
    settings_digest,
    write_failure,
)

GONE = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer")


def failure(rank: int, *, lost_peer: bool = False, helps: bool = True, **others: Any) -> Failure:
    values: dict[str, Any] = {
        "error": "TrainingError",
        "message": "loss=nan",
        "host": "node7",
        "pid": 4242,
        "attempt": 0,
        "step": 17,
        "phase": "forward",
        "samples": (64, 67),
        "time": "2026-11-25T00:00:00+00:00",
    }
    return Failure(rank=rank, lost_peer=lost_peer, restart_helps=helps, **(values | others))


@pytest.mark.parametrize(
    ("order", "kept"),
    [
        ([(1, False), (0, True)], 1),
        ([(0, True), (1, False)], 1),
        ([(0, True), (2, True)], 0),
        ([(3, False), (1, False)], 3),
    ],
    ids=["culprit first", "peer first", "peers alone", "two culprits"],
)
def test_the_first_culprit_stays(tmp_path: Path, order: list[tuple[int, bool]], kept: int) -> None:
    for rank, lost_peer in order:
        write_failure(tmp_path, failure(rank, lost_peer=lost_peer))
    written = read_failure(tmp_path)
    assert written == failure(kept, lost_peer=dict(order)[kept])
    assert [path.name for path in tmp_path.iterdir()] == [FAILURE]


def test_a_record_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_failure(tmp_path, failure(1))
    assert list(tmp_path.iterdir()) == []


def test_a_start_that_cannot_help_is_refused_until_settings_change_or_the_file_is_gone(tmp_path: Path) -> None:
    assert refusal(tmp_path, "a") is None
    write_failure(tmp_path, failure(1, helps=False, settings="a"))
    assert refusal(tmp_path, "b") is None
    told = refusal(tmp_path, "a")
    assert told is not None
    assert "rank 1 (node7, process 4242): step 17, forward, samples 64 to 67: TrainingError: loss=nan" in told
    assert f"remove {tmp_path / FAILURE}" in told
    (tmp_path / FAILURE).unlink()
    assert refusal(tmp_path, "a") is None


def test_a_record_of_an_earlier_version_refuses_nothing(tmp_path: Path) -> None:
    """It does not say of which settings it is."""
    record = dataclasses.asdict(failure(1, helps=False))
    del record["settings"]
    (tmp_path / FAILURE).write_text(json.dumps(record))
    assert read_failure(tmp_path) == failure(1, helps=False)
    assert refusal(tmp_path, "a") is None


def test_settings_are_the_same_whatever_the_number_of_processes() -> None:
    def digest(*overrides: str, world_size: int = 2) -> str:
        return settings_digest(resolve(load_config(None, ["model.preset=tiny", *overrides]), world_size))

    assert digest() == digest(world_size=4) == digest("optimizer.lr=0.0003")
    assert digest() != digest("optimizer.lr=0.0004")


def test_a_failure_that_is_gone_on_from_becomes_history(tmp_path: Path) -> None:
    for attempt in range(2):
        write_failure(tmp_path, failure(attempt, attempt=attempt))
        retire_failure(tmp_path)
        retire_failure(tmp_path)
    assert [json.loads(line)["attempt"] for line in (tmp_path / HISTORY).read_text().splitlines()] == [0, 1]
    assert not (tmp_path / FAILURE).exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"rank": 1}', "null"])
def test_a_damaged_record_refuses_nothing_and_is_replaced(tmp_path: Path, content: str) -> None:
    (tmp_path / FAILURE).write_text(content)
    assert refusal(tmp_path, "a") is None
    write_failure(tmp_path, failure(1))
    assert read_failure(tmp_path) == failure(1)


@pytest.mark.parametrize(
    ("error", "activity", "helps", "lost"),
    [
        (ConfigError("x"), "start-up", False, False),
        (DataError("x"), "data", False, False),
        (ReaderDataError("x"), "data", False, True),
        (ReaderFailed("x"), "data", True, True),
        (TrainingError("x"), "optimizer", False, False),
        (ReplicaError("x"), "weight consistency", True, False),
        (CheckpointError("does not fit"), "start-up", False, False),
        (CheckpointError("disk full"), "saving", True, False),
        (PlatformError("x"), "start-up", True, False),
        (ValueError("x"), "forward", True, False),
        (GONE, "communication", True, True),
        (RuntimeError("shape mismatch"), "forward", True, False),
    ],
)
def test_what_a_restart_helps_against(error: Exception, activity: str, helps: bool, lost: bool) -> None:
    assert restart_helps(error, activity) == helps
    assert is_lost_peer(error) == lost
