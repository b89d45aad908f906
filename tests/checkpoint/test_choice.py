"""One checkpoint for all ranks: what one does not see is waited for, then named; nobody trains on a mixture."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch.distributed as dist
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config

from qwen_megatron.checkpoint import choice
from qwen_megatron.checkpoint.choice import agree_on, agree_on_counters, agree_on_weights, choose_newest
from qwen_megatron.checkpoint.manifest import hashed, write_manifest
from qwen_megatron.checkpoint.state import STATE, CheckpointState, ModelState
from qwen_megatron.convert.hf_paths import is_hf_folder
from qwen_megatron.errors import CheckpointError, UnseenCheckpoint
from qwen_megatron.jobs.failure import restart_helps
from qwen_megatron.train.state import TrainState
from tests.support.ranks import RankFailed, RankPool
from tests.support.trainables import groups_of
from tests.support.training import SMALL, pretrain_job, pretrain_on_ranks, rows

PP2 = "parallel.pipeline_model_parallel_size=2"


def write_checkpoint(folder: Path, content: str = "") -> Path:
    """A stand-in for a checkpoint: small state and manifest as saves write them, and files that say which one it is."""
    folder.mkdir(parents=True)
    save_config(CheckpointingConfig("torch_dist", 1), str(folder))
    state = CheckpointState(
        train_state=TrainState(),
        models={"model": ModelState(config={})},
        config={},
        data={},
        environment={"note": f"{folder.name} {content}"},
    )
    (folder / STATE).write_bytes(state.to_json())
    for name in (".metadata", "__0_0.distcp", "__1_0.distcp"):
        (folder / name).write_text(f"{folder.name} {name} {content}")
    write_manifest(folder, {path.name: hashed(path) for path in folder.iterdir()})
    return folder


def choose_job(directories: list[Path], patience: float, after: float, appears: list[Path]) -> str | None:
    """Each rank chooses in its own folder; `appears[1]` becomes `appears[0]` while they wait."""
    with groups_of():
        rank = dist.get_rank()
        timer = threading.Timer(after, lambda: shutil.copytree(*reversed(appears)))
        if appears and rank == 0:
            timer.start()
        try:
            found = choose_newest(directories[rank], patience)
            return None if found is None else str(found)
        except CheckpointError as error:
            return f"{type(error).__name__}: {error}"
        finally:
            timer.cancel()


def choose(ranks: RankPool, *directories: Path, patience: float = 0.5, **options: Any) -> list[str | None]:
    arguments = {"after": 0.0, "appears": []} | options
    return ranks.run(len(directories), choose_job, directories=list(directories), patience=patience, **arguments)


@pytest.fixture
def two_views(tmp_path: Path) -> tuple[Path, Path]:
    """A run's folder with checkpoints 2 and 4, and an older state of it with 2."""
    for step in (2, 4):
        write_checkpoint(tmp_path / "new" / f"iter_000000{step}")
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    shutil.rmtree(tmp_path / "old" / "iter_0000004")
    return tmp_path / "new", tmp_path / "old"


@pytest.mark.parametrize("blind", [0, 1, 2], ids=["rank 0", "rank 1", "the last"])
def test_a_rank_that_does_not_see_the_newest_is_named_on_all(
    ranks: RankPool, two_views: tuple[Path, Path], blind: int
) -> None:
    new, old = two_views
    told = choose(ranks, *(old if rank == blind else new for rank in range(3)))
    for text in told:
        assert text is not None
        assert text.startswith("UnseenCheckpoint: ")
        assert f"not seen within 0.5 s by rank {blind} (" in text
        assert text.count("rank ") == 2
        assert f"the newest in {old} is iter_0000002" in text
        assert "\n" not in text


def test_what_appears_in_time_is_used_by_all(ranks: RankPool, two_views: tuple[Path, Path]) -> None:
    new, old = two_views
    appears = [old / "iter_0000004", new / "iter_0000004"]
    found = choose(ranks, new, old, patience=20.0, after=1.0, appears=appears)
    assert found == [str(new / "iter_0000004"), str(old / "iter_0000004")]


def test_a_rank_that_sees_nothing_at_all(ranks: RankPool, two_views: tuple[Path, Path], tmp_path: Path) -> None:
    for directories in ((two_views[0], tmp_path / "absent"), (tmp_path / "absent", two_views[0])):
        told = choose(ranks, *directories)
        assert len({str(text).partition(" by ")[2] for text in told}) == 1
        assert f"the newest in {tmp_path / 'absent'} is none" in str(told[0])


@pytest.mark.parametrize("stale", ["another save", "manifest missing", "shard missing", "small state cut"])
def test_another_state_under_the_same_name(ranks: RankPool, tmp_path: Path, stale: str) -> None:
    """The step was saved again, or its folder is only partly there."""
    new, old = (write_checkpoint(tmp_path / name / "iter_0000004", "") for name in ("new", "old"))
    if stale == "another save":
        shutil.rmtree(old)
        write_checkpoint(old, "of an earlier attempt")
    elif stale == "small state cut":
        (old / STATE).write_text("")
    else:
        (old / ("manifest.json" if stale == "manifest missing" else "__1_0.distcp")).unlink()
    told = choose(ranks, new.parent, old.parent)
    for text in told:
        assert str(text).startswith(f"UnseenCheckpoint: {tmp_path}"), text
        assert "by rank 1 (" in str(text)
        assert str(old) in str(text)
    assert not any("by rank 0 (" in str(text) for text in told)


def test_small_state_of_the_same_size_is_compared_on_every_rank(ranks: RankPool, tmp_path: Path) -> None:
    """Rank 3 would not have it in its share."""
    folders = [write_checkpoint(tmp_path / str(rank) / "iter_0000004") for rank in range(4)]
    text = (folders[3] / STATE).read_text()
    (folders[3] / STATE).write_text(text.replace("iter_0000004", "iter_0000005"))
    told = choose(ranks, *(folder.parent for folder in folders))
    assert all(
        "none of its 1 checkpoints is whole" in str(text) and f"{folders[3] / STATE}" in str(text) for text in told
    )


def test_damage_that_all_see_is_passed_over_by_all(ranks: RankPool, two_views: tuple[Path, Path]) -> None:
    new, _ = two_views
    (new / "iter_0000004" / "__1_0.distcp").write_text("x" * len((new / "iter_0000004" / "__1_0.distcp").read_text()))
    assert choose(ranks, new, new) == [str(new / "iter_0000002")] * 2


def test_waiting_ends_within_two_minutes() -> None:
    # For the folder, and for what is in it.
    assert choice.PATIENCE_SECONDS + choice.PATIENCE_SECONDS / 2 < 110


def test_another_start_may_see_more() -> None:
    assert restart_helps(UnseenCheckpoint("x"), "start-up")
    assert not restart_helps(CheckpointError("x"), "start-up")


def counters_job() -> str:
    with groups_of():
        rank = dist.get_rank()
        agree_on_counters("run", {"iteration": 4, "consumed_samples": 16})
        with pytest.raises(CheckpointError) as caught:
            agree_on_counters("run", {"iteration": 4 - 2 * (rank == 2), "consumed_samples": 16})
        return str(caught.value)


def test_counters_are_equal_on_all_ranks(ranks: RankPool) -> None:
    told = ranks.run(3, counters_job)
    assert len(set(told)) == 1
    assert "rank 0 iteration=4 consumed_samples=16, rank 2 iteration=2 consumed_samples=16; nothing" in told[0]


def weights_job(sources: list[Path]) -> bool | str:
    with groups_of():
        try:
            return agree_on_weights(sources[dist.get_rank()], is_hf_folder, 0.5)
        except CheckpointError as error:
            return str(error)


def test_weights_to_start_from_are_the_same_on_all_ranks(ranks: RankPool, tmp_path: Path) -> None:
    for name, last in (("a", b"\1"), ("b", b"\2"), ("same", b"\1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(bytes(200_000) + last)
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    assert ranks.run(2, weights_job, sources=[tmp_path / "a", tmp_path / "same"]) == [True, True]
    assert ranks.run(2, weights_job, sources=[checkpoint, checkpoint]) == [False, False]
    for sources in ([tmp_path / "a", tmp_path / "b"], [tmp_path / "a", checkpoint], [checkpoint, tmp_path / "a"]):
        told = ranks.run(2, weights_job, sources=sources)
        assert all("by rank 1 (" in str(text) for text in told), (sources, told)


def impatient_job(overrides: list[str], own: list[str]) -> None:
    """`pretrain_job` that waits for a second only; each rank has a setting of its own."""
    with mock.patch.object(choice, "PATIENCE_SECONDS", 1.0):
        pretrain_job([*overrides, own[int(os.environ["RANK"])]])


@pytest.fixture(scope="module")
def half(ranks: RankPool, byte_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run at PP2 of four steps, saved at 2 and 4."""
    directory = tmp_path_factory.mktemp("half")
    pretrain_on_ranks(ranks, 2, byte_corpus, directory, "training.exit_iter=4", PP2, "checkpoint.save_interval=2")
    return directory


@pytest.mark.parametrize("how", ["auto", "by name", "weights"])
def test_a_run_whose_second_stage_sees_an_older_state_trains_nothing(
    how: str, ranks: RankPool, byte_corpus: Path, half: Path, tmp_path: Path
) -> None:
    """Before ranks compared what they load, step 5 had the loss of two checkpoints."""
    new, old = Path(shutil.copytree(half, tmp_path / "new")), Path(shutil.copytree(half, tmp_path / "old"))
    continued = tmp_path / "continued"
    if how == "auto":
        shutil.rmtree(old / "iter_0000004")
        own, continued = [f"checkpoint.directory={directory}" for directory in (new, old)], new
    else:
        # The same step as an earlier attempt might have saved it: whole, but with another manifest.
        manifest = old / "iter_0000004" / "manifest.json"
        manifest.write_text(json.dumps(json.loads(manifest.read_text())))
        key = "load" if how == "by name" else "init_from"
        own = [f"checkpoint.{key}={directory / 'iter_0000004'}" for directory in (new, old)]
    overrides = [*SMALL, f"data.blend=[{byte_corpus}]", PP2, "training.exit_iter=6"]
    overrides += [f"checkpoint.directory={continued}"] * (how != "auto")
    before = rows(new)
    with pytest.raises(RankFailed, match=r"UnseenCheckpoint: \S+iter_0000004.* by rank 1 \("):
        ranks.run(2, impatient_job, overrides=overrides, own=own)
    assert rows(new) == before
    assert not list(continued.glob("iter_0000006"))
    assert "UnseenCheckpoint" in (continued / "failure.json").read_text()


def test_without_a_job_nobody_is_waited_for(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(CheckpointError, match=r"manifest\.json: missing"):
        agree_on(tmp_path)
    assert choose_newest(tmp_path) is None
    assert time.monotonic() - started < 5
