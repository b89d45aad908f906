"""verify finds what differs and says where."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen_megatron.convert.from_hf import write_weights
from qwen_megatron.convert.name_map import Format
from qwen_megatron.convert.to_hf import to_hf
from qwen_megatron.convert.verify import Report, verify
from qwen_megatron.errors import CheckpointError
from qwen_megatron.inference.loading import single_process
from tests.convert.random_weights import TINY, TINY3, RandomWeights


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with checkpoints and their exports."""
    folder = tmp_path_factory.mktemp("pair")
    write_weights(RandomWeights(TINY), folder / "checkpoint")
    write_weights(RandomWeights(TINY3), folder / "checkpoint3")
    for hf_format in Format:
        to_hf(checkpoint_of(folder, hf_format), folder / hf_format, hf_format=hf_format)
    return folder


def checkpoint_of(pair: Path, hf_format: Format) -> Path:
    """The checkpoint that the export of a format was made of."""
    return pair / ("checkpoint3" if hf_format is Format.QWEN3 else "checkpoint")


def report_after(pair: Path, copy: Path, hf_format: Format, name: str, change: Callable[..., torch.Tensor]) -> Report:
    """Compares after one tensor of the export has been changed."""
    shutil.copytree(pair / hf_format, copy)
    tensors = load_file(copy / "model.safetensors")
    tensors[name] = change(tensors[name])
    save_file(tensors, copy / "model.safetensors")
    with single_process("cpu") as groups:
        return verify(checkpoint_of(pair, hf_format), copy, groups)


@pytest.mark.parametrize("hf_format", list(Format))
def test_an_export_is_the_same_model(hf_format: Format, pair: Path) -> None:
    with single_process("cpu") as groups:
        report = verify(checkpoint_of(pair, hf_format), pair / hf_format, groups)
    assert report.is_good
    assert (report.different_tensors, report.first_difference) == ((), None)
    assert report.max_difference < 1e-5
    assert (
        report.num_tensors == {Format.QWEN1: 8 * 2 + 3, Format.QWEN2: 12 * 2 + 3, Format.QWEN3: 11 * 2 + 3}[hf_format]
    )


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("model.embed_tokens.weight", "embedding"),
        ("model.layers.0.input_layernorm.weight", "layer 0, attention"),
        ("model.layers.1.self_attn.k_proj.weight", "layer 1, attention"),
        ("model.layers.1.self_attn.o_proj.weight", "layer 1, attention"),
        ("model.layers.0.post_attention_layernorm.weight", "layer 0, feed-forward"),
        ("model.layers.1.mlp.up_proj.weight", "layer 1, feed-forward"),
        ("model.norm.weight", "last norm"),
        ("lm_head.weight", "logits"),
    ],
)
def test_the_first_step_that_differs_is_named(name: str, where: str, pair: Path, tmp_path: Path) -> None:
    report = report_after(pair, tmp_path / "copy", Format.QWEN2, name, lambda tensor: tensor.flip(0))
    assert not report.is_good
    assert report.different_tensors == (name,)
    assert report.first_difference == where
    assert report.max_difference > 1e-2


def test_a_difference_in_a_qwen1_folder_is_named(pair: Path, tmp_path: Path) -> None:
    name = "transformer.h.1.mlp.w2.weight"
    report = report_after(pair, tmp_path / "copy", Format.QWEN1, name, lambda tensor: tensor.flip(0))
    assert (report.different_tensors, report.first_difference) == ((name,), "layer 1, feed-forward")


def test_one_bit_is_enough(pair: Path, tmp_path: Path) -> None:
    def flip_last_bit(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(torch.int32)[0, 0] ^= 1
        return tensor

    report = report_after(pair, tmp_path / "copy", Format.QWEN2, "lm_head.weight", flip_last_bit)
    assert report.first_difference is None
    assert report.different_tensors == ("lm_head.weight",)
    assert not report.is_good


def test_not_a_number_is_a_failure(pair: Path, tmp_path: Path) -> None:
    report = report_after(
        pair, tmp_path / "copy", Format.QWEN2, "model.layers.1.mlp.down_proj.weight", lambda tensor: tensor * torch.nan
    )
    assert not report.is_good
    assert report.first_difference == "layer 1, feed-forward"


def test_the_tolerance_is_used(pair: Path) -> None:
    with single_process("cpu") as groups:
        report = verify(pair / "checkpoint", pair / "qwen2", groups, tolerance=1e-12)
    assert report.different_tensors == ()
    assert report.max_difference > 1e-12
    assert not report.is_good


def test_an_export_in_bf16_of_an_fp32_model_is_compared_in_bf16(pair: Path, tmp_path: Path) -> None:
    to_hf(pair / "checkpoint", tmp_path / "bf16", hf_format=Format.QWEN2, dtype="bf16")
    with single_process("cpu") as groups:
        assert verify(pair / "checkpoint", tmp_path / "bf16", groups).is_good


def test_master_weights_and_rounded_weights_are_both_the_model(trained_bf16: Path, tmp_path: Path) -> None:
    for dtype in ("bf16", "fp32"):
        to_hf(trained_bf16, tmp_path / dtype, hf_format=Format.QWEN2, dtype=dtype)
        with single_process("cpu") as groups:
            assert verify(trained_bf16, tmp_path / dtype, groups).is_good


def test_another_architecture_is_named(pair: Path, tmp_path: Path) -> None:
    shutil.copytree(pair / "qwen2", tmp_path / "copy")
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    config |= {"rms_norm_eps": 1e-6, "rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e4}}
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config))
    with single_process("cpu") as groups, pytest.raises(CheckpointError) as caught:
        verify(pair / "checkpoint", tmp_path / "copy", groups)
    assert "model.rotary_base is 20000.0 in" in str(caught.value)
    assert "model.layernorm_epsilon is 1e-05 in" in str(caught.value)
