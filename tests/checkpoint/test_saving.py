"""Saving while training goes on, by time, with old checkpoints removed, and onto a disk that gives out."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import threading
from pathlib import Path

import pytest

from tests.support.disks import full_disk
from tests.support.ranks import RankFailed, RankPool
from tests.support.training import SMALL, pretrain_job, pretrain_on_ranks, rows

TP2 = "parallel.tensor_model_parallel_size=2"
OVERLAP = ("parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true")


def shard_hashes(checkpoint: Path) -> dict[str, str]:
    files = json.loads((checkpoint / "manifest.json").read_text())["files"]
    return {name: entry["sha256"] for name, entry in files.items() if name.endswith(".distcp")}


def save_twice(overrides: list[str], directory: str) -> None:
    """A run of two steps saved in the foreground, then in the background while every tensor changes."""
    import torch
    import torch.distributed as dist

    from qwen_megatron.checkpoint.retention import Retention
    from qwen_megatron.checkpoint.save import Saver
    from qwen_megatron.config.load import load_config
    from qwen_megatron.config.resolve import resolve
    from qwen_megatron.data.pretraining.dataset import BlendedDataset  # noqa: F401 - imported before the clock of the job runs
    from qwen_megatron.jobs.pretrain import build_run
    from qwen_megatron.parallel.groups import destroy_groups
    from qwen_megatron.train.loop import next_step
    from qwen_megatron.train.step_timers import StepTimers
    from tests.support.trainables import groups_of

    config = resolve(load_config(None, overrides), int(os.environ["WORLD_SIZE"]))
    with groups_of() as groups:
        from qwen_megatron.platforms import get_platform

        run = build_run(config, groups, get_platform("cpu"), StepTimers())
        for _ in range(2):
            next_step(run)
        run.job.close()
        (trainable,) = run.trainables.values()
        Saver(asynchronous=False, retention=Retention()).save(run)
        final = Path(directory) / "iter_0000002"
        if run.is_main:
            final.rename(Path(directory) / "foreground")
            (Path(directory) / "latest").unlink()
        dist.barrier()

        gate = threading.Event()

        def gated() -> "hashlib._Hash":  # noqa: UP037
            assert gate.wait(60)
            return hashlib.sha256()

        saver = Saver(asynchronous=True, retention=Retention(), new_digest=gated)
        saver.save(run)
        with torch.no_grad():
            for param in trainable.trained.get_parameters():
                param.fill_(7)
            for model in trainable.models:
                for weight in model.parameters():
                    weight.fill_(7)
            for state in trainable.trained.optimizer.state.values():
                state["exp_avg"].fill_(7)
        saver.poll(run)
        assert not final.exists()
        assert not (Path(directory) / "latest").exists()
        gate.set()
        while saver.pending is not None:
            saver.poll(run)
        assert final.exists()
        destroy_groups()


def test_an_asynchronous_save_writes_what_the_tensors_were(ranks: RankPool, byte_corpus: Path, tmp_path: Path) -> None:
    overrides = [*SMALL, f"data.blend=[{byte_corpus}]", f"checkpoint.directory={tmp_path}", *OVERLAP]
    ranks.run(2, save_twice, overrides=[*overrides, "training.precision=bf16"], directory=str(tmp_path))
    foreground = shard_hashes(tmp_path / "foreground")
    assert sorted(foreground) == ["__0_0.distcp", "__1_0.distcp"]
    assert shard_hashes(tmp_path / "iter_0000002") == foreground
    assert (tmp_path / "latest").read_text() == "iter_0000002\n"


def test_replicas_write_about_as_much_as_each_other(ranks: RankPool, byte_corpus: Path, tmp_path: Path) -> None:
    """Nothing is gathered: each writes the part of weights and optimizer state that it owns."""
    pretrain_on_ranks(ranks, 4, byte_corpus, tmp_path, "training.exit_iter=1", "training.micro_batch_size=1")
    sizes = [path.stat().st_size for path in (tmp_path / "iter_0000001").glob("*.distcp")]
    assert len(sizes) == 4
    assert max(sizes) < 1.1 * min(sizes)


@pytest.mark.parametrize("asynchronous", ["true", "false"])
def test_old_checkpoints_go(asynchronous: str, ranks: RankPool, byte_corpus: Path, tmp_path: Path) -> None:
    settings = ("checkpoint.save_interval=1", "checkpoint.keep_last=2", "checkpoint.keep_every=3")
    pretrain_on_ranks(
        ranks, 2, byte_corpus, tmp_path, "training.exit_iter=7", f"checkpoint.async_save={asynchronous}", *settings
    )
    assert sorted(path.name for path in tmp_path.glob("iter_*")) == [f"iter_000000{step}" for step in (3, 6, 7)]
    assert not list(tmp_path.glob(".*"))


def test_minutes_between_checkpoints(ranks: RankPool, byte_corpus: Path, tmp_path: Path) -> None:
    settings = ("training.exit_iter=4", "checkpoint.save_interval_minutes=1e-9")
    pretrain_on_ranks(ranks, 2, byte_corpus, tmp_path / "short", *settings)
    assert sorted(path.name for path in (tmp_path / "short").glob("iter_*")) == [
        f"iter_000000{i}" for i in (1, 2, 3, 4)
    ]
    pretrain_on_ranks(
        ranks, 2, byte_corpus, tmp_path / "long", "training.exit_iter=4", "checkpoint.save_interval_minutes=60"
    )
    assert [path.name for path in (tmp_path / "long").glob("iter_*")] == ["iter_0000004"]


def test_a_run_ends_in_order_when_its_time_is_up(ranks: RankPool, byte_corpus: Path, tmp_path: Path) -> None:
    settings = ("training.exit_duration_minutes=1e-9",)
    pretrain_on_ranks(ranks, 2, byte_corpus, tmp_path, *settings)
    assert json.loads((tmp_path / "completion.json").read_text()) == {"reason": "time limit", "step": 1}
    assert (tmp_path / "latest").read_text() == "iter_0000001\n"
    steps = pretrain_on_ranks(ranks, 2, byte_corpus, tmp_path, *settings)
    assert sorted(steps) == [1, 2]


def pretrain_until_the_disk_is_full(overrides: list[str], full_rank: int) -> str:
    """The error of this rank."""
    from qwen_megatron.errors import CheckpointError

    # Metrics and small state fit, shards do not.
    limit = 100_000 if int(os.environ["RANK"]) == full_rank else resource.RLIM_INFINITY
    with full_disk(limit), pytest.raises(CheckpointError) as caught:
        pretrain_job(overrides)
    return str(caught.value)


DISK = (TP2, "checkpoint.keep_last=1", "checkpoint.save_interval=2")


@pytest.fixture(scope="module")
def saved_once(ranks: RankPool, byte_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run after two steps."""
    directory = tmp_path_factory.mktemp("saved")
    pretrain_on_ranks(ranks, 2, byte_corpus, directory, "training.exit_iter=2", *DISK)
    return directory


@pytest.mark.parametrize("asynchronous", ["true", "false"])
@pytest.mark.parametrize("full_rank", [0, 1])
def test_a_full_disk_fails_on_all_ranks_and_leaves_the_checkpoint_before(
    full_rank: int, asynchronous: str, ranks: RankPool, byte_corpus: Path, tmp_path: Path, saved_once: Path
) -> None:
    shutil.copytree(saved_once, tmp_path, dirs_exist_ok=True)
    before = shard_hashes(tmp_path / "iter_0000002")
    settings = (*DISK, f"checkpoint.async_save={asynchronous}", "training.exit_iter=6")
    overrides = [*SMALL, f"data.blend=[{byte_corpus}]", f"checkpoint.directory={tmp_path}", *settings]
    errors = ranks.run(2, pretrain_until_the_disk_is_full, overrides=overrides, full_rank=full_rank)
    assert errors[0] == errors[1]
    assert f".iter_0000004.partial/__{full_rank}_0.distcp: cannot be written (File too large" in errors[0]
    assert [path.name for path in tmp_path.glob("iter_*")] == ["iter_0000002"]
    assert shard_hashes(tmp_path / "iter_0000002") == before
    assert not list(tmp_path.glob(".*"))
    if full_rank == 1:
        return
    steps = pretrain_on_ranks(ranks, 2, byte_corpus, tmp_path, *settings, "training.exit_iter=4")
    assert sorted(steps) == [1, 2, 3, 4]
    assert [row["step"] for row in rows(tmp_path) if "loss" in row] == [1, 2, 3, 4]


def test_a_folder_that_cannot_be_made_fails_on_all_ranks(ranks: RankPool, byte_corpus: Path, tmp_path: Path) -> None:
    """Rank 0 alone makes the folder; the others must not wait for it."""
    (tmp_path / ".iter_0000001.partial").write_text("a file in its place")
    with pytest.raises(RankFailed, match=r"rank 1 failed(.|\n)*iter_0000001\.partial") as caught:
        pretrain_on_ranks(ranks, 2, byte_corpus, tmp_path, "training.exit_iter=1", timeout_seconds=60)
    assert "CheckpointError" in str(caught.value)
