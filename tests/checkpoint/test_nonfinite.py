"""What is no number is not saved, loaded, imported or run as if it were a good model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen_megatron.checkpoint import finite
from qwen_megatron.cli.main import main
from qwen_megatron.errors import CheckpointError, NonFiniteError, TrainingError
from qwen_megatron.jobs.failure import restart_helps
from qwen_megatron.train.finite import all_finite, check_evaluation
from qwen_megatron.train.run import Hook, Run, StepRecord
from qwen_megatron.train.trainable import MAIN, Trainable
from tests.support.ranks import RankPool
from tests.support.trainables import tiny_trainable
from tests.support.training import SMALL, pretrain_job, pretrain_on_ranks, rows

TP2 = "parallel.tensor_model_parallel_size=2"
BAD = float("nan")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_number_is_enough(dtype: torch.dtype, value: float) -> None:
    tensor = torch.full((3, 1000), torch.finfo(dtype).max, dtype=dtype)
    assert all_finite(tensor)
    tensor[1, 500] = value
    assert not all_finite(tensor)
    assert all_finite(tensor[2:])
    assert all_finite(tensor[:0])


class Spoiler(Hook):
    """Before the save after a step, puts a NaN into something that this rank owns."""

    def __init__(self, what: str, rank: int, step: int):
        self.what = what
        self.rank = rank
        self.step = step

    def on_step(self, run: Run, record: StepRecord) -> None:
        if record.step == self.step and run.groups.rank == self.rank:
            spoil(run.trainables[MAIN], self.what)


def spoil(trainable: Trainable, what: str) -> None:
    if what == "weight":
        with torch.no_grad():
            next(trainable.models[0].parameters()).flatten()[0] = BAD
        return
    (master, *_) = trainable.trained.optimizer.param_groups[0]["params"]
    tensor = master if what == "param" else trainable.trained.optimizer.state[master][what]
    tensor.detach().flatten()[0] = BAD


def pretrain_with_a_spoiler(overrides: list[str], what: str, rank: int, step: int) -> str:
    """The error of this rank."""
    from qwen_megatron.jobs import hooks as wiring

    plain = wiring.checkpoint_hook

    class Both(Hook):
        def __init__(self, hooks: list[Hook]):
            self.hooks = hooks

        def on_start(self, run: Run) -> None:
            for hook in self.hooks:
                hook.on_start(run)

        def on_step(self, run: Run, record: StepRecord) -> None:
            for hook in self.hooks:
                hook.on_step(run, record)

        def on_end(self, run: Run) -> None:
            for hook in self.hooks:
                hook.on_end(run)

        def close(self) -> None:
            for hook in self.hooks:
                hook.close()

    wiring.checkpoint_hook = lambda *given: Both([Spoiler(what, rank, step), plain(*given)])  # type: ignore
    try:
        with pytest.raises(TrainingError) as caught:
            pretrain_job(overrides)
    finally:
        wiring.checkpoint_hook = plain
    assert isinstance(caught.value, NonFiniteError)
    return str(caught.value)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


SETTINGS = (TP2, "checkpoint.keep_last=1", "checkpoint.save_interval=2")


@pytest.fixture(scope="module")
def healthy(ranks: RankPool, byte_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, saved after the second."""
    directory = tmp_path_factory.mktemp("healthy") / "run"
    pretrain_on_ranks(ranks, 2, byte_corpus, directory, "training.exit_iter=2", *SETTINGS)
    return directory


def assert_not_saved(ranks: RankPool, corpus: Path, directory: Path, what: str, asynchronous: str) -> None:
    """A state that is spoiled in step 4 on one of two ranks is refused by both; all that was there stays."""
    before = bytes_of(directory / "iter_0000002")
    overrides = [*SMALL, f"data.blend=[{corpus}]", f"checkpoint.directory={directory}", *SETTINGS]
    overrides.append(f"checkpoint.async_save={asynchronous}")
    errors = ranks.run(2, pretrain_with_a_spoiler, overrides=overrides, what=what, rank=1, step=4)
    assert errors[0] == errors[1]
    assert errors[0].startswith("step 4 is not saved: rank 1: ")
    key = "model." if what == "weight" else f"model.optimizer.state.{what}."
    assert f"rank 1: {key}" in errors[0]
    assert "weight hold" in errors[0]
    assert [path.name for path in directory.glob("iter_*")] == ["iter_0000002"]
    assert bytes_of(directory / "iter_0000002") == before
    assert not list(directory.glob(".*"))


@pytest.mark.parametrize("asynchronous", ["true", "false"])
@pytest.mark.parametrize("what", ["weight", "param", "exp_avg", "exp_avg_sq"])
def test_a_sick_state_is_not_saved(
    what: str, asynchronous: str, ranks: RankPool, byte_corpus: Path, healthy: Path, tmp_path: Path
) -> None:
    """The checkpoint before stays though only one is kept."""
    directory = Path(shutil.copytree(healthy, tmp_path / "run"))
    assert_not_saved(ranks, byte_corpus, directory, what, asynchronous)


@pytest.mark.parametrize("asynchronous", ["true", "false"])
def test_the_run_goes_on_from_the_checkpoint_before(
    asynchronous: str, ranks: RankPool, byte_corpus: Path, healthy: Path, tmp_path: Path
) -> None:
    directory = Path(shutil.copytree(healthy, tmp_path / "run"))
    assert_not_saved(ranks, byte_corpus, directory, "weight", asynchronous)
    steps = pretrain_on_ranks(ranks, 2, byte_corpus, directory, "training.exit_iter=4", *SETTINGS)
    assert sorted(steps) == [1, 2, 3, 4]


def test_a_restart_helps_against_a_sick_state() -> None:
    assert restart_helps(NonFiniteError("x"), "saving")
    assert restart_helps(NonFiniteError("x"), "evaluation")
    assert not restart_helps(TrainingError("x"), "evaluation")


def test_an_evaluation_that_is_no_number_is_a_failure() -> None:
    with tiny_trainable() as trainable:
        check_evaluation([trainable], 5, 1e300)
        with pytest.raises(TrainingError, match="step 5: the loss of the evaluation is inf, though") as caught:
            check_evaluation([trainable], 5, float("inf"))
        assert not isinstance(caught.value, NonFiniteError)
        spoil(trainable, "weight")
        with pytest.raises(NonFiniteError, match="step 5: the loss of the evaluation is nan, for weights hold NaN"):
            check_evaluation([trainable], 5, float("nan"))


def save_without_looking(overrides: list[str], what: str) -> None:
    """A run of an earlier version, which saved whatever there was."""
    from qwen_megatron.checkpoint import save

    plain = save.check_before_save

    def spoiling(tensors: dict[str, object], step: int, rank: int) -> None:
        if step == 2:
            key = "model." if what == "weight" else f"model.optimizer.state.{what}."
            name = next(name for name in tensors if name.startswith(f"{key}embedding"))
            tensors[name].data.flatten()[0] = BAD  # type: ignore[attr-defined]

    save.check_before_save = spoiling  # type: ignore[assignment]
    try:
        pretrain_job(overrides)
    finally:
        save.check_before_save = plain


@pytest.fixture(scope="module")
def sick_run(ranks: RankPool, byte_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose second checkpoint has a NaN among the weights."""
    directory = tmp_path_factory.mktemp("sick")
    settings = [*SMALL, f"data.blend=[{byte_corpus}]", f"checkpoint.directory={directory}", "training.exit_iter=2"]
    ranks.run(1, save_without_looking, overrides=[*settings, "checkpoint.save_interval=1"], what="weight")
    return directory


@pytest.fixture
def run_copy(sick_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sick_run, tmp_path / "run"))


def error_of(overrides: list[str]) -> str:
    with pytest.raises((CheckpointError, TrainingError)) as caught:
        pretrain_job(overrides)
    return f"{type(caught.value).__name__}: {caught.value}"


def test_a_sick_checkpoint_is_not_loaded(ranks: RankPool, byte_corpus: Path, run_copy: Path, tmp_path: Path) -> None:
    sick = run_copy / "iter_0000002"
    common = [*SMALL, f"data.blend=[{byte_corpus}]", "training.exit_iter=3"]
    (refused,) = ranks.run(1, error_of, overrides=[*common, f"checkpoint.directory={run_copy}"])
    assert refused.startswith(f"CheckpointError: {sick}: ")
    assert "embedding.word_embeddings.weight hold" in refused
    assert "checkpoint.allow_nonfinite=true" in refused
    fresh = [*common, f"checkpoint.directory={tmp_path / 'fresh'}", f"checkpoint.init_from={sick}"]
    (refused,) = ranks.run(1, error_of, overrides=fresh)
    assert "embedding.word_embeddings.weight holds NaN or infinity" in refused
    # Asked for, it is loaded; no loss shows it, for no text has the token of the bad row, but it is not saved again.
    (refused,) = ranks.run(1, error_of, overrides=[*fresh, "checkpoint.allow_nonfinite=true"])
    assert refused.startswith("NonFiniteError: step 3 is not saved")


@pytest.fixture
def ids(tmp_path: Path) -> Iterator[Path]:
    np.save(tmp_path / "ids.npy", np.array([[1, 2, 3]]))
    before = os.getcwd()
    yield tmp_path / "ids.npy"
    os.chdir(before)


def command(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_logits_and_exports_of_a_sick_checkpoint(
    sick_run: Path, ids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sick = sick_run / "iter_0000002"
    logits = ("logits", sick, "--input-ids", ids, "--output", tmp_path / "logits.npy")
    assert command(*logits) == 1
    assert "embedding.word_embeddings.weight holds NaN or infinity" in capsys.readouterr().err
    assert not (tmp_path / "logits.npy").exists()
    assert command(*logits, "--allow-nonfinite") == 0
    export = ("convert", "to-hf", sick, tmp_path / "hf", "--format", "qwen2")
    assert command(*export) == 1
    assert f"{sick}: embedding.word_embeddings.weight holds NaN" in capsys.readouterr().err
    assert not (tmp_path / "hf").exists()
    assert command(*export, "--allow-nonfinite") == 0


def test_an_import_of_sick_weights(sick_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "hf"
    assert command("convert", "to-hf", sick_run / "iter_0000001", folder, "--format", "qwen2") == 0
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = -float("inf")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    capsys.readouterr()
    assert command("convert", "from-hf", folder, tmp_path / "imported") == 1
    assert "of layer 1 holds NaN or infinity" in capsys.readouterr().err
    assert not (tmp_path / "imported").exists()
    assert command("convert", "from-hf", folder, tmp_path / "imported", "--allow-nonfinite") == 0


def test_few_are_named() -> None:
    assert finite.in_words(iter(())) == ""
    assert finite.in_words(iter(("a",))) == "a holds NaN or infinity"
    assert finite.in_words(iter("abcde")) == "a, b, c and 2 more hold NaN or infinity"


def evaluate_to_nothing(overrides: list[str]) -> str:
    with mock.patch("qwen_megatron.jobs.pretrain.evaluate", return_value=(float("nan"), {})):
        return error_of(overrides)


def test_the_failed_evaluation_is_in_the_metrics(ranks: RankPool, byte_corpus: Path, tmp_path: Path) -> None:
    """The row is there, and the run does not end as finished."""
    overrides = [*SMALL, f"data.blend=[{byte_corpus}]", f"checkpoint.directory={tmp_path}"]
    refused = ranks.run(2, evaluate_to_nothing, overrides=overrides)
    assert len(set(refused)) == 1
    assert refused[0].startswith("TrainingError: step 0: the loss of the evaluation is nan, though all weights")
    assert rows(tmp_path)[0]["eval_loss"] is None
    assert not (tmp_path / "completion.json").exists()
