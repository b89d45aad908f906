"""Checkpoints load into modules that keep state beside their tensors, as Transformer Engine's do; here a stand-in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qwen_megatron.checkpoint.load import load_model
from qwen_megatron.checkpoint.sharded_state import EXTRA_STATE, fill, sharded_weights
from qwen_megatron.config.load import load_config
from qwen_megatron.config.resolve import resolve
from qwen_megatron.convert.from_hf import write_weights
from qwen_megatron.convert.load_hf_weights import load_hf_weights
from qwen_megatron.convert.name_map import Format
from qwen_megatron.convert.to_hf import to_hf
from qwen_megatron.convert.verify import verify
from qwen_megatron.errors import CheckpointError
from qwen_megatron.inference.loading import single_process
from qwen_megatron.jobs.pretrain import pretrain
from qwen_megatron.model.builder import build_model, unwrapped
from qwen_megatron.model.qwen_model import QwenModel
from tests.convert.random_weights import TINY, TINY3, RandomWeights
from tests.support.extra_state import with_extra_state
from tests.support.training import SMALL, rows

IN_ONE_LAYER = 7


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a model that normalises queries and keys: its layers have the most such state."""
    folder = tmp_path_factory.mktemp("saved") / "iter_0000000"
    write_weights(RandomWeights(TINY3), folder)
    return folder


def plain_and_stateful(groups: object) -> tuple[QwenModel, QwenModel]:
    """The model of the checkpoint, with and without such state."""
    return tuple(
        unwrapped(build(TINY3, groups, precision="fp32"))  # type: ignore[arg-type, return-value]
        for build in (build_model, with_extra_state(build_model))
    )


def weights_of(qwen: QwenModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in qwen.named_parameters()}


def assert_equal(left: QwenModel, right: QwenModel) -> None:
    for name, weight in weights_of(left).items():
        assert torch.equal(weight, weights_of(right)[name]), name


def test_weights_load_whatever_the_modules_keep_besides(saved: Path) -> None:
    with single_process("cpu") as groups:
        plain, stateful = plain_and_stateful(groups)
        names = [name for name in stateful.state_dict() if name.endswith(EXTRA_STATE) and ".layers.0." in name]
        assert len(names) == IN_ONE_LAYER
        for qwen in (plain, stateful):
            load_model(saved, qwen)
        assert_equal(plain, stateful)


def test_weights_of_a_folder_load_too(saved: Path) -> None:
    with single_process("cpu") as groups:
        plain, stateful = plain_and_stateful(groups)
        load_model(saved, plain)
        load_hf_weights(RandomWeights(TINY3), stateful)
        assert_equal(plain, stateful)


def test_a_conversion_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Of the first series, which is compared without transformers.
    write_weights(RandomWeights(TINY), tmp_path / "checkpoint")
    to_hf(tmp_path / "checkpoint", tmp_path / "hf", hf_format=Format.QWEN1)
    monkeypatch.setattr("qwen_megatron.convert.verify.build_model", with_extra_state(build_model))
    with single_process("cpu") as groups:
        assert verify(tmp_path / "checkpoint", tmp_path / "hf", groups, by_layers=False).is_good


@pytest.mark.parametrize("change", ["missing", "surplus"])
def test_every_other_difference_is_an_error_that_names_it(change: str, tmp_path: Path) -> None:
    with single_process("cpu") as groups:
        _, stateful = plain_and_stateful(groups)
        state = {name: value for name, value in stateful.state_dict().items() if not name.endswith(EXTRA_STATE)}
        # Surplus state of a module is none of it.
        state["decoder.layers.0.mlp.linear_fc1._extra_state"] = torch.zeros(4)
        fill(stateful, state, tmp_path)
        key = "decoder.layers.1.mlp.linear_fc2.weight"
        if change == "missing":
            del state[key]
        else:
            key = "decoder.layers.1.mlp.linear_fc2._extra_state_of_another"
            state[key] = torch.zeros(4)
        word = "lacks" if change == "missing" else "has besides"
        with pytest.raises(CheckpointError, match=f"{word} {key}"):
            fill(stateful, state, tmp_path)
        assert not any(name.endswith(EXTRA_STATE) for name in sharded_weights(stateful))


def test_a_run_goes_on_bitwise_and_into_other_modules(
    byte_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(directory: Path, *settings: str) -> list[str]:
        run = (f"data.blend=[{byte_corpus}]", f"checkpoint.directory={directory}", "data.eval_samples=0")
        short = (
            "model.num_layers=2",
            "training.train_iters=4",
            "optimizer.lr_warmup_iters=2",
            "training.precision=bf16",
            *run,
        )
        pretrain(resolve(load_config(None, [*SMALL, *short, *settings]), 1))
        return [row["loss_hex"] for row in rows(directory) if "loss_hex" in row]

    whole = train(tmp_path / "whole")
    monkeypatch.setattr("qwen_megatron.train.trainable.build_model", with_extra_state(build_model))
    train(tmp_path / "halves", "training.exit_iter=2")
    assert train(tmp_path / "halves", "training.exit_iter=3")[:3] == whole[:3]
    monkeypatch.undo()
    assert train(tmp_path / "halves") == whole
