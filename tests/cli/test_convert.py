"""`qwen-megatron convert` from the command line: messages and exit statuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen_megatron.cli.main import main

FIXTURE = Path(__file__).parents[1] / "fixtures" / "qwen1-mini"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("convert") / "checkpoint"
    assert main(["convert", "from-hf", str(FIXTURE), str(out)]) == 0
    return out


@pytest.mark.parametrize("hf_format", ["qwen1", "qwen2"])
def test_export_and_verify(
    hf_format: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "hf"
    export = ["convert", "to-hf", str(checkpoint), str(out), "--format", hf_format]
    assert main([*export, "--max-shard-size", "200kb"]) == 0
    assert f"wrote {out}" in capsys.readouterr().out
    assert len(list(out.glob("model-0000?-of-00003.safetensors"))) == 3
    assert main(["convert", "verify", str(checkpoint), str(out)]) == 0
    printed = capsys.readouterr().out
    count = {"qwen1": 27, "qwen2": 39}[hf_format]
    assert f"tensors: {count} of {count} equal bit for bit" in printed
    assert "verified: both are the same model" in printed
    assert main(export) == 2
    assert f"{out}: exists; choose another name, or replace it with --overwrite" in capsys.readouterr().err
    assert main([*export, "--overwrite"]) == 0
    assert [path.name for path in out.glob("*.safetensors")] == ["model.safetensors"]


def test_verify_fails_on_another_model(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "hf"
    assert main(["convert", "to-hf", str(checkpoint), str(out), "--format", "qwen2", "--dtype", "bf16"]) == 0
    tensors = load_file(out / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    tensors["model.layers.2.mlp.gate_proj.weight"] *= 2
    save_file(tensors, out / "model.safetensors")
    capsys.readouterr()
    assert main(["convert", "verify", str(checkpoint), str(out), "--tolerance", "1e-3"]) == 1
    printed = capsys.readouterr().out
    assert "tensors: 38 of 39 equal bit for bit" in printed
    assert "differs: model.layers.2.mlp.gate_proj.weight" in printed
    assert "tolerance 0.001" in printed
    assert "first difference: layer 2, feed-forward" in printed
    assert "FAILED: these are different models" in printed


def test_a_damaged_checkpoint_fails_in_one_line(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", "to-hf", str(tmp_path / "nothing"), str(tmp_path / "out"), "--format", "qwen2"]) == 1
    message = capsys.readouterr().err
    assert f"qwen-megatron: error: {tmp_path / 'nothing' / 'manifest.json'}: missing" in message
    assert "Traceback" not in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["convert"], "the following arguments are required: ACTION"),
        (["convert", "to-hf", "a", "b"], "the following arguments are required: --format"),
        (["convert", "to-hf", "a", "b", "--format", "gguf"], "invalid choice: 'gguf'"),
        (["convert", "to-hf", "a", "b", "--format", "qwen2", "--dtype", "fp8"], "invalid choice: 'fp8'"),
        (["convert", "to-hf", "a", "b", "--format", "qwen2", "--max-shard-size", "0GB"], "'0GB' is not a size"),
        (["convert", "to-hf", "a", "b", "--format", "qwen2", "--max-shard-size", "5 TB"], "'5 TB' is not a size"),
        (["convert", "verify", "a", "b", "--tolerance", "nan"], "'nan' is not a positive number"),
        (["convert", "verify", "a", "b", "--tolerance", "-1"], "-1' is not a positive number"),
        (["convert", "from-hf", "a"], "the following arguments are required: OUT"),
        (["generate", "a", "--prompt", "x", "--max-new-tokens", "0"], "'0' is not a positive number"),
        (["logits", "a", "--output", "x"], "the following arguments are required: --input-ids"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


def test_help_needs_neither_torch_nor_megatron() -> None:
    code = (
        "import sys; from qwen_megatron.cli.main import build_parser; build_parser();"
        "print({'torch', 'megatron', 'transformers', 'safetensors'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
