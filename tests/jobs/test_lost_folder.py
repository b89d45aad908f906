"""A run's folder that is removed, moved or replaced under a job: the job ends, and leaves the new one alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from qwen_megatron.checkpoint.run_lock import check_still_held, run_lock
from qwen_megatron.errors import CheckpointError
from qwen_megatron.train.run import Hook, Run, StepRecord
from tests.support.ranks import RankPool
from tests.support.training import SMALL, pretrain_job, pretrain_on_ranks


class Mover(Hook):
    """Does something to the run's folder after a step, on rank 0."""

    def __init__(self, how: str, step: int):
        self.how = how
        self.step = step

    def on_step(self, run: Run, record: StepRecord) -> None:
        if record.step != self.step or not run.is_main:
            return
        folder = run.directory
        match self.how:
            case "removed":
                shutil.rmtree(folder)
            case "moved":
                folder.rename(folder.with_name("elsewhere"))
            case "replaced":
                folder.rename(folder.with_name("elsewhere"))
                folder.mkdir()
            case "lock replaced":
                (folder / "lock").unlink()
                (folder / "lock").touch()


def pretrain_while_moving(overrides: list[str], how: str) -> str:
    """The error of this rank."""
    from qwen_megatron.jobs import hooks as wiring

    plain = wiring.reporting_hooks
    wiring.reporting_hooks = lambda config: [*plain(config), Mover(how, 3)]
    try:
        with pytest.raises(CheckpointError) as caught:
            pretrain_job(overrides)
    finally:
        wiring.reporting_hooks = plain
    return str(caught.value)


@pytest.mark.parametrize("asynchronous", ["true", "false"])
@pytest.mark.parametrize("how", ["removed", "moved", "replaced", "lock replaced"])
def test_a_lost_folder_ends_the_job(
    how: str, asynchronous: str, ranks: RankPool, byte_corpus: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    settings = ("checkpoint.save_interval=2", f"checkpoint.async_save={asynchronous}", "logging.tensorboard=false")
    pretrain_on_ranks(ranks, 2, byte_corpus, folder, "training.exit_iter=2", *settings)
    overrides = [*SMALL, f"data.blend=[{byte_corpus}]", f"checkpoint.directory={folder}", *settings]
    errors = ranks.run(2, pretrain_while_moving, overrides=overrides, how=how)
    assert errors[0] == errors[1]
    assert errors[0].startswith(f"{folder}: was removed, moved or replaced while this job trained in it")
    assert "\n" not in errors[0]
    left = sorted(path.name for path in folder.iterdir()) if folder.exists() else None
    assert left is None if how in ("removed", "moved") else left is not None
    assert not list(tmp_path.rglob("iter_0000004"))
    assert how != "replaced" or left == []


def test_a_folder_that_is_in_place_is_no_problem(tmp_path: Path) -> None:
    check_still_held(None)
    with run_lock(tmp_path) as lock:
        check_still_held(lock)
        other: Any = tmp_path.with_name("moved")
        tmp_path.rename(other)
        with pytest.raises(CheckpointError, match="was removed, moved or replaced"):
            check_still_held(lock)
        other.rename(tmp_path)
        check_still_held(lock)
