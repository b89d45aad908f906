"""Symbolic links in a run's folder: refused by name or replaced, never followed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from qwen_megatron.checkpoint.manifest import write_synced
from qwen_megatron.checkpoint.retention import remove_leftovers
from qwen_megatron.checkpoint.run_lock import run_lock
from qwen_megatron.errors import CheckpointError, DataError
from qwen_megatron.jobs.failure import Failure, read_failure, retire_failure, write_failure
from qwen_megatron.train.hooks.metrics import MetricsHook
from qwen_megatron.train.hooks.preemption import write_completion
from qwen_megatron.train.hooks.wandb import run_id
from qwen_megatron.train.run import Run
from tests.support.ranks import RankFailed, RankPool
from tests.support.training import pretrain_on_ranks

VICTIM = b"not yours\n"
FAILURE = Failure(
    error="ValueError",
    message="x",
    rank=0,
    host="node7",
    pid=1,
    attempt=0,
    step=1,
    phase="forward",
    samples=(0, 3),
    time="2026-11-25T00:00:00+00:00",
    restart_helps=True,
    lost_peer=False,
)


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file of somebody else's that links point to."""
    path = tmp_path / "elsewhere" / "victim"
    path.parent.mkdir()
    path.write_bytes(VICTIM)
    return path


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A run's folder."""
    path = tmp_path / "run"
    path.mkdir()
    return path


def test_a_linked_lock_is_refused(directory: Path, victim: Path) -> None:
    (directory / "lock").symlink_to(victim)
    with pytest.raises(CheckpointError, match=r"run/lock: is a symbolic link to .*victim"), run_lock(directory):
        pytest.fail("a link was locked")
    assert victim.read_bytes() == VICTIM


def test_a_lock_is_lost_with_its_folder(directory: Path, tmp_path: Path) -> None:
    with run_lock(directory) as lock:
        assert lock.still_held()
        directory.rename(tmp_path / "moved")
        assert not lock.still_held()
        directory.mkdir()
        with run_lock(directory) as other:
            assert other.still_held()
            assert not lock.still_held()


FILES = ("latest", "config.yaml", "completion.json", "failure.json", "wandb.json")


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_replaced_is_not_written_through(name: str, directory: Path, victim: Path) -> None:
    (directory / name).symlink_to(victim)
    # The names of earlier versions, and what one may guess.
    for temporary in (f"{name}.partial", f".{name}.partial", f"{name}.rank0.partial", f"{name}.tmp"):
        (directory / temporary).symlink_to(victim)
    if name == "completion.json":
        write_completion(directory, "finished", 3)
    elif name == "failure.json":
        write_failure(directory, FAILURE)
        assert read_failure(directory) == FAILURE
    elif name == "wandb.json":
        with pytest.raises(DataError, match=r"wandb\.json: is a symbolic link"):
            run_id(directory / name)
    else:
        write_synced(directory / name, b"ours\n")
    assert victim.read_bytes() == VICTIM
    assert (directory / name).is_symlink() == (name == "wandb.json")


def test_a_first_record_of_a_failure_never_goes_through_a_dangling_link(directory: Path, tmp_path: Path) -> None:
    (directory / "failure.json").symlink_to(tmp_path / "new")
    (directory / "failure.json.rank0.partial").symlink_to(tmp_path / "new")
    write_failure(directory, FAILURE)
    assert not (tmp_path / "new").exists()


def test_rows_are_not_appended_through_a_link(directory: Path, victim: Path) -> None:
    run = cast(Run, SimpleNamespace(directory=directory, is_main=True, state=SimpleNamespace(iteration=0)))
    for name in ("metrics.jsonl", "failures.jsonl"):
        (directory / name).symlink_to(victim)
    with pytest.raises(DataError, match=r"metrics\.jsonl: is a symbolic link"):
        MetricsHook().on_start(run)
    write_failure(directory, FAILURE)
    with pytest.raises(DataError, match=r"failures\.jsonl: is a symbolic link"):
        retire_failure(directory)
    assert read_failure(directory) == FAILURE
    assert victim.read_bytes() == VICTIM


def test_the_list_of_starts_is_not_a_link(
    directory: Path, victim: Path, byte_corpus: Path, ranks: RankPool, tmp_path: Path
) -> None:
    (directory / "starts.jsonl").symlink_to(victim)
    with pytest.raises(RankFailed, match=r"starts\.jsonl: is a symbolic link to .*victim"):
        pretrain_on_ranks(ranks, 1, byte_corpus, directory, "training.exit_iter=1")
    assert victim.read_bytes() == VICTIM


@pytest.mark.parametrize("name", [".iter_0000001.partial", ".iter_0000001.replaced", ".iter_0000001.removed"])
def test_a_hidden_folder_that_is_a_link_is_left_alone(name: str, directory: Path, victim: Path) -> None:
    (directory / name).symlink_to(victim.parent)
    remove_leftovers(directory)
    assert victim.read_bytes() == VICTIM


def test_only_own_leftovers_go(directory: Path) -> None:
    theirs = [".iter_notes", ".iter_0000001.mine", ".iter_1.partial", ".swap.abcdefgh.tmp", ".latest.txt.abcdefgh.tmp"]
    ours = [".latest.abcdefgh.tmp", ".metrics.jsonl.0a1b2c3d.tmp"]
    for name in theirs[:3]:
        (directory / name).mkdir()
    for name in [*theirs[3:], *ours]:
        (directory / name).touch()
    remove_leftovers(directory)
    assert sorted(path.name for path in directory.iterdir()) == sorted(theirs)
