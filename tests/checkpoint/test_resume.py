"""Going on from a checkpoint: bitwise on the same layout, within fp32 rounding on another, refused when damaged."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.ranks import RankFailed, RankPool
from tests.support.trainables import groups_of
from tests.support.training import DEEP, as_after, pretrain_on_ranks, rows

TP2 = "parallel.tensor_model_parallel_size=2"
PP2 = "parallel.pipeline_model_parallel_size=2"
SP = "parallel.sequence_parallel=true"
VPP2 = "parallel.virtual_pipeline_model_parallel_size=2"
FIRST1 = "parallel.num_layers_in_first_pipeline_stage=1"
CP2 = "parallel.context_parallel_size=2"
OVERLAP = ("parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true")
HALF = "training.exit_iter=4"
# The fifth step shows what was restored, the sixth one the update that it led to; after that nothing is new.
WHOLE = "training.exit_iter=6"
# Step 4 lies in the middle: 2, 2, 2, 2, 2, 4, ... and 4, 4, 4, 4, 4, 8, ... samples a step.
RAMP_FROM_2 = (
    "training.global_batch_size=8",
    "training.rampup_start_batch_size=2",
    "training.rampup_batch_size_increment=2",
    "training.rampup_samples=30",
)
RAMP_FROM_4 = (
    "training.global_batch_size=8",
    "training.rampup_start_batch_size=4",
    "training.rampup_batch_size_increment=4",
    "training.rampup_samples=20",
)
# Two micro-batches a step fill a pipeline of two stages, and are summed up on one process.
TWO_ROWS = ("training.micro_batch_size=1", "training.global_batch_size=2", "data.eval_samples=2")
train_deep = partial(pretrain_on_ranks, base=(*DEEP, *TWO_ROWS))
TRAINED_ROWS = ("loss_hex", "grad_norm", "learning_rate", "consumed_samples", "consumed_tokens")


def trained(steps: dict[int, dict[str, Any]]) -> dict[int, tuple[Any, ...]]:
    """What must be equal bit for bit."""
    return {step: tuple(row[name] for name in TRAINED_ROWS) for step, row in steps.items()}


@pytest.mark.parametrize(
    ("world_size", "layout", "middle"),
    [
        (4, (TP2, PP2, SP, *RAMP_FROM_2), 4),
        (4, (PP2, VPP2, *OVERLAP, *RAMP_FROM_4), 4),
        (8, (TP2, PP2, SP, *OVERLAP, "training.precision=bf16", "training.global_batch_size=4"), 2),
    ],
    ids=["tp2-sp-pp2-ramp", "pp2-vpp2-dp2-overlap-ramp", "tp2-sp-pp2-dp2-overlap-bf16"],
)
def test_resume_is_bitwise(
    world_size: int, layout: tuple[str, ...], middle: int, ranks: RankPool, byte_corpus: Path, tmp_path: Path
) -> None:
    """The step after the middle shows what was restored, the next one the update that it led to."""
    settings = (*layout, f"checkpoint.save_interval={middle}", f"training.exit_iter={middle + 2}")
    straight = train_deep(ranks, world_size, byte_corpus, tmp_path / "straight", *settings)
    halves = as_after(middle, tmp_path / "straight", tmp_path / "halves")
    resumed = train_deep(ranks, world_size, byte_corpus, halves, *settings)
    assert trained(resumed) == trained(straight)
    assert sorted(resumed) == list(range(1, middle + 3))


def test_neither_a_save_nor_a_stop_changes_training(ranks: RankPool, byte_corpus: Path, tmp_path: Path) -> None:
    straight = pretrain_on_ranks(ranks, 1, byte_corpus, tmp_path / "straight", WHOLE)
    pretrain_on_ranks(ranks, 1, byte_corpus, tmp_path / "halves", HALF, "checkpoint.save_interval=2")
    halves = pretrain_on_ranks(ranks, 1, byte_corpus, tmp_path / "halves", WHOLE)
    assert trained(halves) == trained(straight)


@pytest.fixture(scope="module")
def half_run(ranks: RankPool, byte_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on TP2 x PP2 with sequence parallelism, stopped after 4 of its steps, saved at 2 and 4."""
    directory = tmp_path_factory.mktemp("half")
    train_deep(ranks, 4, byte_corpus, directory, HALF, TP2, PP2, SP, "checkpoint.save_interval=2")
    return directory


@pytest.fixture
def run_copy(half_run: Path, tmp_path: Path) -> Path:
    """A copy of it to go on with or to damage."""
    return Path(shutil.copytree(half_run, tmp_path / "run"))


@pytest.mark.parametrize(
    ("world_size", "layout"),
    [
        (1, ()),
        (2, (TP2,)),
        (2, (PP2,)),
        (4, (TP2,)),
        (2, ()),
        (2, (PP2, FIRST1)),
        (2, (PP2, VPP2)),
        (4, (CP2, *OVERLAP)),
    ],
    ids=["one", "tp2", "pp2", "tp2-dp2", "dp2", "pp2-uneven", "pp2-vpp2", "cp2-dp2-overlap"],
)
def test_resume_on_another_layout(
    world_size: int,
    layout: tuple[str, ...],
    ranks: RankPool,
    byte_corpus: Path,
    run_copy: Path,
    continued: dict[int, dict[str, Any]],
) -> None:
    steps = train_deep(ranks, world_size, byte_corpus, run_copy, WHOLE, *layout)
    assert sorted(steps) == list(range(1, 7))
    for step in range(5, 7):
        assert steps[step]["loss"] == pytest.approx(continued[step]["loss"], rel=1e-5)
        assert steps[step]["consumed_samples"] == continued[step]["consumed_samples"]


@pytest.fixture(scope="module")
def continued(
    ranks: RankPool, byte_corpus: Path, half_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, dict[str, Any]]:
    """The run gone on with on its own layout."""
    directory = tmp_path_factory.mktemp("continued") / "run"
    shutil.copytree(half_run, directory)
    return train_deep(ranks, 4, byte_corpus, directory, WHOLE, TP2, PP2, SP)


@pytest.fixture(scope="module")
def alone(ranks: RankPool, byte_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps of one process, saved at 4 and 6."""
    directory = tmp_path_factory.mktemp("alone")
    pretrain_on_ranks(ranks, 1, byte_corpus, directory, WHOLE, "checkpoint.save_interval=4")
    return directory


def test_from_one_process_to_a_layout(ranks: RankPool, byte_corpus: Path, tmp_path: Path, alone: Path) -> None:
    directory = as_after(4, alone, tmp_path / "run")
    spread = pretrain_on_ranks(ranks, 4, byte_corpus, directory, WHOLE, TP2, SP)
    same = {row["step"]: row for row in rows(alone) if "loss" in row}
    for step in range(5, 7):
        assert spread[step]["loss"] == pytest.approx(same[step]["loss"], rel=1e-5)
        assert spread[step]["consumed_samples"] == same[step]["consumed_samples"]


def test_no_pickle_beside_the_shards_is_opened(
    ranks: RankPool, byte_corpus: Path, run_copy: Path, tmp_path: Path, continued: dict[int, dict[str, Any]]
) -> None:
    """Files that Megatron-Core and others keep pickled state in, entered in the manifest by somebody who means harm."""
    canary = tmp_path / "canary"

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (canary,))

    checkpoint = run_copy / "iter_0000004"
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    for name in ("common.pt", "rng.pt", "rng_state.npy", "optim.pt"):
        content = pickle.dumps(Payload())
        (checkpoint / name).write_bytes(content)
        manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    steps = train_deep(ranks, 4, byte_corpus, run_copy, "training.exit_iter=5", TP2, PP2, SP)
    assert steps[5]["loss_hex"] == continued[5]["loss_hex"]
    assert not canary.exists()


def test_vocabulary_padded_for_the_layout_comes_off_again(ranks: RankPool, byte_corpus: Path, tmp_path: Path) -> None:
    """257 rows are 258 on two tensor-parallel ranks; one rank takes them over without the extra row."""
    same = pretrain_on_ranks(ranks, 2, byte_corpus, tmp_path / "same", WHOLE, TP2, "checkpoint.save_interval=4")
    directory = as_after(4, tmp_path / "same", tmp_path / "run")
    alone = pretrain_on_ranks(ranks, 1, byte_corpus, directory, WHOLE)
    assert alone[6]["loss"] == pytest.approx(same[6]["loss"], rel=1e-5)


def test_small_state_is_json(half_run: Path) -> None:
    state = json.loads((half_run / "iter_0000004" / "state.json").read_text())
    assert state["train_state"] == {"iteration": 4, "consumed_samples": 8, "consumed_tokens": 512}
    ((_, data),) = state["data"].items()
    assert data["consumed_samples"] == 8
    assert state["environment"]["packages"]["megatron-core"]
    assert (half_run / "latest").read_text() == "iter_0000004\n"
    assert not list(half_run.glob(".*"))


def damage_flip(checkpoint: Path) -> str:
    path = max(checkpoint.glob("*.distcp"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return path.name


def damage_truncate(checkpoint: Path) -> str:
    path = max(checkpoint.glob("*.distcp"), key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[:-1])
    return path.name


def damage_remove(checkpoint: Path) -> str:
    path = max(checkpoint.glob("*.distcp"), key=lambda path: path.stat().st_size)
    path.unlink()
    return path.name


def damage_manifest(checkpoint: Path) -> str:
    (checkpoint / "manifest.json").write_text("{")
    return "manifest.json"


def damage_swap(checkpoint: Path) -> str:
    """The shard of another checkpoint, whole and of the same size."""
    path = max(checkpoint.glob("*.distcp"), key=lambda path: path.stat().st_size)
    other = checkpoint.with_name("iter_0000002") / path.name
    assert other.stat().st_size == path.stat().st_size
    shutil.copy(other, path)
    return path.name


DAMAGES = [damage_flip, damage_truncate, damage_remove, damage_manifest, damage_swap]


def choose(directory: Path) -> str | None:
    """The checkpoint that a resume begins with, as this rank finds it."""
    from qwen_megatron.checkpoint.choice import choose_newest

    with groups_of():
        found = choose_newest(directory)
        return None if found is None else found.name


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_checkpoint_is_passed_over(damage: Any, ranks: RankPool, run_copy: Path) -> None:
    assert ranks.run(2, choose, directory=run_copy) == ["iter_0000004"] * 2
    damage(run_copy / "iter_0000004")
    assert ranks.run(2, choose, directory=run_copy) == ["iter_0000002"] * 2


def test_a_resume_from_the_checkpoint_before_arrives_at_the_same_bits(
    ranks: RankPool, byte_corpus: Path, run_copy: Path, continued: dict[int, dict[str, Any]]
) -> None:
    damage_flip(run_copy / "iter_0000004")
    steps = train_deep(ranks, 4, byte_corpus, run_copy, WHOLE, TP2, PP2, SP)
    assert trained(steps) == trained(continued)
    # Rows of the steps that were done again stand once.
    assert [row["step"] for row in rows(run_copy) if "loss" in row] == list(range(1, 7))


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_checkpoint_asked_for_by_name_is_refused(
    damage: Any, ranks: RankPool, byte_corpus: Path, run_copy: Path
) -> None:
    name = damage(run_copy / "iter_0000004")
    with pytest.raises(RankFailed, match="CheckpointError") as caught:
        train_deep(ranks, 1, byte_corpus, run_copy, WHOLE, f"checkpoint.load={run_copy / 'iter_0000004'}")
    assert name in str(caught.value)


def test_no_whole_checkpoint_is_not_a_fresh_start(ranks: RankPool, byte_corpus: Path, run_copy: Path) -> None:
    for folder in run_copy.glob("iter_*"):
        damage_flip(folder)
    with pytest.raises(RankFailed, match="none of its 2 checkpoints is whole"):
        train_deep(ranks, 1, byte_corpus, run_copy, WHOLE)


@pytest.mark.parametrize("content", ["", "garbage\x00", "iter_9999999\n", "../../etc"])
def test_garbled_latest_does_not_matter(content: str, ranks: RankPool, run_copy: Path) -> None:
    (run_copy / "latest").write_text(content)
    assert ranks.run(1, choose, directory=run_copy) == ["iter_0000004"]


def test_a_resume_with_a_garbled_latest_goes_on(
    ranks: RankPool, byte_corpus: Path, run_copy: Path, continued: dict[int, dict[str, Any]]
) -> None:
    (run_copy / "latest").write_text("../../etc")
    steps = train_deep(ranks, 4, byte_corpus, run_copy, "training.exit_iter=5", TP2, PP2, SP)
    assert steps[5]["loss_hex"] == continued[5]["loss_hex"]


def test_partial_folder_is_no_checkpoint(ranks: RankPool, byte_corpus: Path, run_copy: Path) -> None:
    """A save that was killed leaves a hidden folder; the next save of that step replaces it."""
    (run_copy / "iter_0000004").rename(run_copy / ".iter_0000004.partial")
    (run_copy / ".iter_0000004.partial" / "manifest.json").unlink()
    steps = train_deep(ranks, 4, byte_corpus, run_copy, HALF, TP2, PP2, SP)
    assert sorted(steps) == [1, 2, 3, 4]
    assert (run_copy / "iter_0000004" / "manifest.json").exists()
    assert not (run_copy / ".iter_0000004.partial").exists()


def test_a_finished_run_started_again_does_nothing(ranks: RankPool, byte_corpus: Path, run_copy: Path) -> None:
    before = rows(run_copy)
    train_deep(ranks, 2, byte_corpus, run_copy, HALF, TP2)
    assert rows(run_copy) == before


@pytest.mark.parametrize("change", ["optimizer.weight_decay=2", "optimizer.lr=2e-2"])
def test_a_changed_setting_is_refused_or_used(
    change: str, ranks: RankPool, byte_corpus: Path, alone: Path, tmp_path: Path
) -> None:
    as_after(4, alone, tmp_path / "run")
    expected = {row["step"]: row for row in rows(alone) if "loss" in row}
    assert_refused_or_used(change, pretrain_on_ranks, ranks, 1, (), byte_corpus, tmp_path / "run", expected)


def test_a_changed_setting_is_refused_or_used_on_ranks(
    ranks: RankPool, byte_corpus: Path, run_copy: Path, continued: dict[int, dict[str, Any]]
) -> None:
    change, layout = "optimizer.adam_beta1=0.5", (TP2, PP2, SP)
    assert_refused_or_used(change, train_deep, ranks, 4, layout, byte_corpus, run_copy, continued)


def assert_refused_or_used(
    change: str,
    train: Callable[..., dict[int, dict[str, Any]]],
    ranks: RankPool,
    world_size: int,
    layout: tuple[str, ...],
    corpus: Path,
    directory: Path,
    expected: dict[int, dict[str, Any]],
) -> None:
    """A run's folder after its fourth step; `expected` are the rows of going on without the change."""
    key, _, value = change.partition("=")
    settings = ("training.exit_iter=6", change, "optimizer.min_lr=1e-3", *layout)
    refusal = rf"ChangesRefused(.|\n)*{key} is {float(value):g}, the checkpoint was trained with"
    with pytest.raises(RankFailed, match=refusal):
        train(ranks, world_size, corpus, directory, *settings)
    allowed = f"checkpoint.allow_changes=[{key}]"
    steps = train(ranks, world_size, corpus, directory, *settings, allowed)
    # The first loss comes before the first update with the new value.
    assert steps[5]["loss_hex"] == expected[5]["loss_hex"]
    assert steps[6]["loss_hex"] != expected[6]["loss_hex"]
    if key == "optimizer.lr":
        assert steps[5]["learning_rate"] > 1.9 * expected[5]["learning_rate"]
    # What was allowed once is what the next checkpoint was trained with.
    train(ranks, world_size, corpus, directory, *settings, "training.exit_iter=7")


def test_other_data_is_refused(ranks: RankPool, run_copy: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    from tests.support.corpora import write_byte_corpus

    other = write_byte_corpus(tmp_path_factory.mktemp("other") / "bytes", num_documents=30)
    with pytest.raises(RankFailed, match=r"data\.blend is .*now but not then: "):
        train_deep(ranks, 1, other, run_copy, WHOLE)


def test_init_from_takes_weights_only(ranks: RankPool, byte_corpus: Path, half_run: Path, tmp_path: Path) -> None:
    checkpoint = half_run / "iter_0000004"
    before = [row["eval_loss"] for row in rows(half_run) if "eval_loss" in row][-1]
    steps = train_deep(
        ranks, 2, byte_corpus, tmp_path, "training.exit_iter=2", f"checkpoint.init_from={checkpoint}", TP2
    )
    after = next(row for row in rows(tmp_path) if "eval_loss" in row)
    assert after["step"] == 0
    assert after["eval_loss"] == pytest.approx(before, rel=1e-5)
    assert steps[1]["consumed_samples"] == 2
    assert steps[1]["learning_rate"] == pytest.approx(0.01 / 4)


def test_init_from_another_shape_is_refused(ranks: RankPool, byte_corpus: Path, half_run: Path, tmp_path: Path) -> None:
    with pytest.raises(RankFailed, match=r"model\.ffn_hidden_size=128, but it has 176"):
        train_deep(
            ranks,
            1,
            byte_corpus,
            tmp_path,
            f"checkpoint.init_from={half_run / 'iter_0000004'}",
            "model.ffn_hidden_size=128",
        )
