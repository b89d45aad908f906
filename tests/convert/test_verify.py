"""verify finds what differs and says where."""

from __future__ import annotations

import dataclasses
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


# In whole models, and layer by layer.
both_ways = pytest.mark.parametrize("by_layers", [False, True], ids=["whole", "layers"])


def compare(checkpoint: Path, folder: Path, by_layers: bool | None = None, **options: float) -> Report:
    """What `verify` finds."""
    with single_process("cpu") as groups:
        return verify(checkpoint, folder, groups, by_layers=by_layers, **options)


def report_after(
    pair: Path, copy: Path, hf_format: Format, name: str, change: Callable[..., torch.Tensor], by_layers: bool
) -> Report:
    """Compares after one tensor of the export has been changed."""
    shutil.copytree(pair / hf_format, copy)
    tensors = load_file(copy / "model.safetensors")
    tensors[name] = change(tensors[name])
    save_file(tensors, copy / "model.safetensors")
    return compare(checkpoint_of(pair, hf_format), copy, by_layers)


@both_ways
@pytest.mark.parametrize("hf_format", list(Format))
def test_an_export_is_the_same_model(hf_format: Format, by_layers: bool, pair: Path) -> None:
    report = compare(checkpoint_of(pair, hf_format), pair / hf_format, by_layers)
    assert report.is_good
    assert (report.by_layers, report.num_tokens) == (by_layers, 64)
    assert (report.different_tensors, report.first_difference) == ((), None)
    assert report.max_difference < 1e-5
    assert (
        report.num_tensors == {Format.QWEN1: 8 * 2 + 3, Format.QWEN2: 12 * 2 + 3, Format.QWEN3: 11 * 2 + 3}[hf_format]
    )


@both_ways
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
def test_the_first_step_that_differs_is_named(
    name: str, where: str, by_layers: bool, pair: Path, tmp_path: Path
) -> None:
    report = report_after(pair, tmp_path / "copy", Format.QWEN2, name, lambda tensor: tensor.flip(0), by_layers)
    assert not report.is_good
    assert report.different_tensors == (name,)
    assert report.first_difference == where
    assert report.max_difference > 1e-2


@both_ways
@pytest.mark.parametrize(
    ("hf_format", "name", "where"),
    [
        (Format.QWEN1, "transformer.h.1.mlp.w2.weight", "layer 1, feed-forward"),
        (Format.QWEN1, "transformer.h.0.attn.c_attn.bias", "layer 0, attention"),
        (Format.QWEN3, "model.layers.0.self_attn.k_norm.weight", "layer 0, attention"),
    ],
)
def test_a_difference_in_another_format_is_named(
    hf_format: Format, name: str, where: str, by_layers: bool, pair: Path, tmp_path: Path
) -> None:
    report = report_after(pair, tmp_path / "copy", hf_format, name, lambda tensor: tensor.flip(0), by_layers)
    assert (report.different_tensors, report.first_difference) == ((name,), where)


@pytest.mark.parametrize("hf_format", list(Format))
def test_layers_find_a_swapped_gate(hf_format: Format, pair: Path, tmp_path: Path) -> None:
    shutil.copytree(pair / hf_format, tmp_path / "copy")
    tensors = load_file(tmp_path / "copy" / "model.safetensors")
    names = ["transformer.h.1.mlp.w1.weight", "transformer.h.1.mlp.w2.weight"]
    if hf_format is not Format.QWEN1:
        names = ["model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.gate_proj.weight"]
    left, right = (tensors[name].clone() for name in names)
    tensors |= dict(zip(names, (right, left), strict=True))
    save_file(tensors, tmp_path / "copy" / "model.safetensors")
    report = compare(checkpoint_of(pair, hf_format), tmp_path / "copy", True)
    assert set(report.different_tensors) == set(names)
    assert report.first_difference == "layer 1, feed-forward"


@pytest.mark.parametrize("hf_format", list(Format))
def test_layers_see_arithmetic_that_no_tensor_tells(
    hf_format: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All bits are equal; the base of the rotary embedding is not, were it only read wrongly."""
    model = TINY3 if hf_format is Format.QWEN3 else TINY
    write_weights(RandomWeights(model), tmp_path / "checkpoint")
    write_weights(RandomWeights(dataclasses.replace(model, rotary_base=10000.0)), tmp_path / "other")
    to_hf(tmp_path / "other", tmp_path / "hf", hf_format=hf_format)
    monkeypatch.setattr("qwen_megatron.convert.verify.check_same_architecture", lambda *_: None)
    report = compare(tmp_path / "checkpoint", tmp_path / "hf", True)
    assert (report.different_tensors, report.first_difference) == ((), "layer 0, attention")
    assert report.max_difference > 1e-3


def test_layers_find_a_change_in_the_middle(tmp_path: Path) -> None:
    write_weights(RandomWeights(dataclasses.replace(TINY, num_layers=5)), tmp_path / "checkpoint")
    to_hf(tmp_path / "checkpoint", tmp_path / "hf", hf_format=Format.QWEN2, max_shard_bytes=20000)
    name = "model.layers.2.self_attn.o_proj.weight"
    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())
    file = tmp_path / "hf" / index["weight_map"][name]
    tensors = load_file(file)
    tensors[name][3, 5] += 0.5
    save_file(tensors, file)
    report = compare(tmp_path / "checkpoint", tmp_path / "hf", True)
    assert (report.different_tensors, report.first_difference) == ((name,), "layer 2, attention")


def test_a_model_that_does_not_fit_is_compared_by_layers(
    pair: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert not compare(pair / "checkpoint", pair / "qwen2").by_layers
    monkeypatch.setattr("qwen_megatron.convert.verify.available_bytes", lambda: 1000)
    report = compare(pair / "checkpoint", pair / "qwen2")
    assert report.is_good
    assert report.by_layers
    assert "it is compared layer by layer" in caplog.text


def test_a_vocabulary_is_compared_in_blocks(pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """67 rows in blocks of 10, from pieces of 16."""
    monkeypatch.setattr("qwen_megatron.convert.layerwise.BLOCK_ROWS", 10)
    monkeypatch.setattr("qwen_megatron.convert.from_hf.PIECE_BYTES", 16 * TINY.hidden_size * 4)
    write_weights(RandomWeights(TINY), tmp_path / "checkpoint")
    assert compare(tmp_path / "checkpoint", pair / "qwen2", True).is_good
    shutil.copytree(pair / "qwen2", tmp_path / "copy")
    tensors = load_file(tmp_path / "copy" / "model.safetensors")
    tensors["lm_head.weight"][66] += 1
    save_file(tensors, tmp_path / "copy" / "model.safetensors")
    report = compare(tmp_path / "checkpoint", tmp_path / "copy", True)
    assert (report.different_tensors, report.first_difference) == (("lm_head.weight",), "logits")


@both_ways
def test_one_bit_is_enough(by_layers: bool, pair: Path, tmp_path: Path) -> None:
    def flip_last_bit(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(torch.int32)[0, 0] ^= 1
        return tensor

    report = report_after(pair, tmp_path / "copy", Format.QWEN2, "lm_head.weight", flip_last_bit, by_layers)
    assert report.first_difference is None
    assert report.different_tensors == ("lm_head.weight",)
    assert not report.is_good


@both_ways
def test_not_a_number_is_a_failure(by_layers: bool, pair: Path, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    report = report_after(pair, tmp_path / "copy", Format.QWEN2, name, lambda tensor: tensor * torch.nan, by_layers)
    assert not report.is_good
    assert report.first_difference == "layer 1, feed-forward"


@both_ways
def test_the_tolerance_is_used(by_layers: bool, pair: Path) -> None:
    report = compare(pair / "checkpoint", pair / "qwen2", by_layers, tolerance=1e-12)
    assert report.different_tensors == ()
    assert report.max_difference > 1e-12
    assert not report.is_good


def test_an_export_in_bf16_of_an_fp32_model_is_compared_in_bf16(pair: Path, tmp_path: Path) -> None:
    to_hf(pair / "checkpoint", tmp_path / "bf16", hf_format=Format.QWEN2, dtype="bf16")
    assert compare(pair / "checkpoint", tmp_path / "bf16").is_good
    assert compare(pair / "checkpoint", tmp_path / "bf16", True).is_good


def test_master_weights_and_rounded_weights_are_both_the_model(trained_bf16: Path, tmp_path: Path) -> None:
    for dtype in ("bf16", "fp32"):
        to_hf(trained_bf16, tmp_path / dtype, hf_format=Format.QWEN2, dtype=dtype)
        assert compare(trained_bf16, tmp_path / dtype).is_good
        assert compare(trained_bf16, tmp_path / dtype, True).is_good


def test_another_architecture_is_named(pair: Path, tmp_path: Path) -> None:
    shutil.copytree(pair / "qwen2", tmp_path / "copy")
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    config |= {"rms_norm_eps": 1e-6, "rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e4}}
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config))
    with single_process("cpu") as groups, pytest.raises(CheckpointError) as caught:
        verify(pair / "checkpoint", tmp_path / "copy", groups)
    assert "model.rotary_base is 20000.0 in" in str(caught.value)
    assert "model.layernorm_epsilon is 1e-05 in" in str(caught.value)
