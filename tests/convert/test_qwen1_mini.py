"""The released model code's own numbers: logits, training loss and gradients of a tiny Qwen of the first series."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from qwen_megatron.checkpoint.load import load_weights
from qwen_megatron.checkpoint.state import saved_model_config
from qwen_megatron.config.load import load_config
from qwen_megatron.config.resolve import resolve
from qwen_megatron.convert.from_hf import from_hf
from qwen_megatron.convert.hf_config import read_config
from qwen_megatron.convert.hf_folder import HfFolder
from qwen_megatron.convert.load_hf_weights import load_hf_weights
from qwen_megatron.convert.name_map import TABLE, Format
from qwen_megatron.convert.to_hf import to_hf
from qwen_megatron.data.batch import Batch
from qwen_megatron.inference.loading import load_for_inference, logits, single_process
from qwen_megatron.model.builder import build_model
from qwen_megatron.train.step import StepResult
from tests.convert.round_trip import assert_same_tensors, load_folder
from tests.support.trainables import take_step, tiny_built

LENGTHS = (1, 12, 24, 25, 48, 96)


@pytest.fixture(scope="module")
def golden(qwen1_mini: Path) -> dict[str, torch.Tensor]:
    with np.load(qwen1_mini / "golden.npz") as archive:
        return {name: torch.from_numpy(archive[name]) for name in archive.files}


@pytest.fixture(scope="module")
def golden_train(qwen1_mini: Path) -> dict[str, torch.Tensor]:
    with np.load(qwen1_mini / "golden_train.npz") as archive:
        return {name: torch.from_numpy(archive[name]) for name in archive.files}


@pytest.fixture(scope="module")
def plain_folder(qwen1_mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixture with both ways of stretching the context off, as in training."""
    folder = tmp_path_factory.mktemp("plain")
    for file in qwen1_mini.iterdir():
        content = file.read_bytes()
        if file.name == "config.json":
            content = content.replace(b'"use_dynamic_ntk": true', b'"use_dynamic_ntk": false')
            content = content.replace(b'"use_logn_attn": true', b'"use_logn_attn": false')
        (folder / file.name).write_bytes(content)
    return folder


def largest_difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    assert actual.shape == expected.shape
    return (actual.double() - expected.double()).abs().max().item()


def test_imported_logits_equal_the_released_code(
    plain_folder: Path, golden: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    from_hf(plain_folder, tmp_path / "imported")
    with single_process("cpu") as groups:
        model = load_for_inference(tmp_path / "imported", groups)
        for length in LENGTHS:
            actual = logits(model, golden[f"ids_{length}"])
            assert largest_difference(actual, golden[f"logits_ntk0_logn0_{length}"]) < 5e-5, length


@pytest.mark.parametrize("ntk", [0, 1])
@pytest.mark.parametrize("logn", [0, 1])
def test_stretched_logits_equal_the_released_code(
    ntk: int, logn: int, qwen1_mini: Path, golden: dict[str, torch.Tensor]
) -> None:
    folder = HfFolder(qwen1_mini)
    config = dataclasses.replace(folder.model, use_dynamic_ntk=bool(ntk), use_logn_attn=bool(logn))
    with single_process("cpu") as groups:
        model = build_model(config, groups, precision="fp32").eval()
        load_hf_weights(folder, model)
        for length in LENGTHS:
            actual = logits(model, golden[f"ids_{length}"])
            assert largest_difference(actual, golden[f"logits_ntk{ntk}_logn{logn}_{length}"]) < 5e-5, length


def training_batch(golden_train: dict[str, torch.Tensor]) -> Batch:
    """The golden batch; labels are shifted here as the released code does inside."""
    ids_bs, labels_bs = golden_train["ids"], golden_train["labels"]
    shifted_bs = torch.cat((labels_bs[:, 1:], torch.full_like(labels_bs[:, :1], -100)), dim=1)
    counts_bs = shifted_bs != -100
    return Batch(
        tokens_bs=ids_bs,
        labels_bs=shifted_bs.where(counts_bs, 0),
        loss_mask_bs=counts_bs.float(),
        position_ids_bs=torch.arange(ids_bs.size(1)).expand_as(ids_bs),
        document_ids_bs=torch.zeros_like(ids_bs),
        samples=(None, None),
    )


@pytest.fixture(scope="module")
def trained_step(
    imported_mini: Path, golden_train: dict[str, torch.Tensor]
) -> tuple[StepResult, dict[str, torch.Tensor]]:
    """One step of real training on the imported weights, and its gradients by Hugging Face name."""
    batch = training_batch(golden_train)
    settings = ["parallel.platform=cpu", "model.preset=tiny", "training.precision=fp32", "training.seq_length=48"]
    settings += ["training.micro_batch_size=2", "training.global_batch_size=2", "training.train_iters=10"]
    # The fixture's own settings, which stretch positions beyond 24 tokens: training must not.
    model = saved_model_config(imported_mini)
    config = dataclasses.replace(resolve(load_config(None, settings), 1), model=model)
    with single_process("cpu") as groups:
        trainable = tiny_built(config, groups)
        load_weights(imported_mini, trainable)
        result = take_step(trainable, iter([batch]), learning_rate=0.0, clip_grad=0.0)
        gradients = {}
        for name, parameter in trainable.models[0].named_parameters():
            key = name.replace("decoder.layers.0.", "decoder.layers.")
            for entry in TABLE:
                if entry.key == key:
                    pieces = entry.split(parameter.main_grad, model, Format.QWEN1)
                    gradients |= dict(zip((text.format(layer=0) for text in entry.qwen1), pieces, strict=True))
        # Gradients live in buffers of the trainable.
        return result, {name: gradient.clone() for name, gradient in gradients.items()}


def test_training_loss_and_norm_equal_the_released_code(
    trained_step: tuple[StepResult, dict[str, torch.Tensor]], golden_train: dict[str, torch.Tensor]
) -> None:
    result, _ = trained_step
    assert result.loss == pytest.approx(golden_train["loss"].item(), rel=1e-5)
    assert result.grad_norm == pytest.approx(golden_train["grad_norm"].item(), rel=1e-5)


@pytest.mark.parametrize(
    "name",
    ["transformer.wte.weight", "transformer.h.0.attn.c_attn.weight", "transformer.h.0.mlp.w1.weight"],
)
def test_gradients_equal_the_released_code(
    name: str, trained_step: tuple[StepResult, dict[str, torch.Tensor]], golden_train: dict[str, torch.Tensor]
) -> None:
    _, gradients = trained_step
    expected = golden_train[f"grad/{name}"]
    assert largest_difference(gradients[name], expected) < 1e-5 * expected.abs().max().item()


def test_exported_again_every_byte_is_equal(imported_mini: Path, qwen1_mini: Path, tmp_path: Path) -> None:
    to_hf(imported_mini, tmp_path / "exported", hf_format=Format.QWEN1)
    assert_same_tensors(tmp_path / "exported", qwen1_mini)
    assert read_config(tmp_path / "exported" / "config.json") == read_config(qwen1_mini / "config.json")


def test_exported_as_qwen2_transformers_agrees(
    imported_mini: Path, golden: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    to_hf(imported_mini, tmp_path / "exported", hf_format=Format.QWEN2)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype=torch.float32, local_files_only=True)
    for length in LENGTHS:
        with torch.no_grad():
            actual = model.eval()(golden[f"ids_{length}"]).logits
        assert largest_difference(actual, golden[f"logits_ntk0_logn0_{length}"]) < 5e-5, length


def test_qwen1_to_qwen2_and_back_every_byte_is_equal(imported_mini: Path, qwen1_mini: Path, tmp_path: Path) -> None:
    to_hf(imported_mini, tmp_path / "qwen2", hf_format=Format.QWEN2)
    from_hf(tmp_path / "qwen2", tmp_path / "imported")
    to_hf(tmp_path / "imported", tmp_path / "qwen1", hf_format=Format.QWEN1)
    assert_same_tensors(tmp_path / "qwen1", qwen1_mini)
    assert len(load_folder(tmp_path / "qwen2")) == 12 * 3 + 3
