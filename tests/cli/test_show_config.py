"""`show-config`: resolved values, derived values, and that its output is a configuration again."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from qwen_megatron.cli.main import main
from qwen_megatron.config.load import load_config
from qwen_megatron.config.reference import reference
from qwen_megatron.config.resolve import resolve

LAYOUT = [
    "model.preset=qwen-72b",
    "parallel.tensor_model_parallel_size=8",
    "parallel.pipeline_model_parallel_size=8",
    "parallel.world_size=256",
    "data.blend={'010': 0.5, a/b.c: 2}",
    "checkpoint.directory=1e5",
]


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["show-config", *arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_derived_values(capsys: pytest.CaptureFixture[str]) -> None:
    tree = yaml.safe_load(shown(capsys, *LAYOUT))
    derived = tree["derived"]
    assert derived["data_parallel_size"] == 4
    assert derived["num_microbatches"] == 512
    assert derived["padded_vocab_size"] == 152064
    assert derived["layers_per_stage"] == [10] * 8
    assert derived["num_parameters"] == 72_287_920_128
    assert len(derived["num_parameters_per_rank"]) == 8
    assert derived["num_parameters_per_rank"][1] == 10 * ((4 * 8192**2 + 3 * 8192 * 24576 + 3 * 8192) // 8 + 2 * 8192)
    assert derived["tokens_per_step"] == 4 * 1024 * 1024
    assert tree["model"]["kv_channels"] == 128
    assert tree["optimizer"]["lr_decay_iters"] == tree["training"]["train_iters"]


def test_the_output_without_derived_values_is_the_same_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(capsys, *LAYOUT)
    settings, _, _ = text.partition("# Worked out")
    path = tmp_path / "resolved.yaml"
    path.write_text(settings)
    assert resolve(load_config(path)) == resolve(load_config(None, LAYOUT))
    assert shown(capsys, str(path)) == text


def test_problems_end_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show-config", "model.preset=tiny", "parallel.tensor_model_parallel_size=3", "a.b=1"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("qwen-megatron: 2 problems in the configuration:\n  1. a.b=1: unknown key;")


def test_the_reference_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, "--reference") == reference()
