"""`qwen-megatron convert` from the command line: messages and exit statuses."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
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
    assert "tokens in fp32, in whole models" in printed
    assert main(["convert", "verify", str(checkpoint), str(out), "--layer-by-layer"]) == 0
    printed = capsys.readouterr().out
    assert f"tensors: {count} of {count} equal bit for bit; names and shapes as config.json says" in printed
    assert "48 tokens in fp32, layer by layer" in printed
    assert main(export) == 2
    assert f"{out}: exists; choose another name, or replace it with --overwrite" in capsys.readouterr().err
    assert main([*export, "--overwrite", "--verify"]) == 0
    assert "verified: both are the same model" in capsys.readouterr().out
    assert main(["convert", "from-hf", str(out), str(tmp_path / "back"), "--verify"]) == 0
    assert "verified: both are the same model" in capsys.readouterr().out
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
    assert message == f"qwen-megatron: error: {tmp_path / 'nothing'}: no such folder; check the name\n"
    assert "Traceback" not in message
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_does_not_exist_is_called_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nothing, other = str(tmp_path / "nothing"), str(tmp_path / "other")
    np.save(tmp_path / "ids.npy", np.zeros((1, 2), dtype=np.int64))
    for command in (
        ["convert", "to-hf", nothing, other],
        ["convert", "from-hf", nothing, other],
        ["convert", "verify", nothing, str(FIXTURE)],
        ["convert", "verify", str(FIXTURE), nothing],
        ["generate", nothing, "--prompt", "a"],
        ["logits", nothing, "--input-ids", str(tmp_path / "ids.npy"), "--output", other],
    ):
        assert main(command) == 1
        assert capsys.readouterr().err == f"qwen-megatron: error: {nothing}: no such folder; check the name\n"
    assert [path.name for path in tmp_path.iterdir()] == ["ids.npy"]


def test_of_a_run_the_newest_checkpoint_is_taken(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run, out, newest = tmp_path / "run", tmp_path / "hf", tmp_path / "run" / "iter_0000010"
    shutil.copytree(checkpoint, newest)
    (run / "iter_0000002").mkdir()
    np.save(tmp_path / "ids.npy", np.zeros((1, 2), dtype=np.int64))
    # The fixture has dynamic NTK and LogN scaling.
    assert main(["convert", "to-hf", str(run), str(out)]) == 0
    assert f"wrote {out} (qwen1)" in capfd.readouterr().out
    assert main(["convert", "verify", str(run), str(out)]) == 0
    ids, logits = str(tmp_path / "ids.npy"), tmp_path / "logits.npy"
    assert main(["logits", str(run), "--input-ids", ids, "--output", str(logits)]) == 0
    assert main(["generate", str(run), "--prompt", "a"]) == 1
    assert f"{run / 'iter_0000010'}: its vocabulary has 160 rows" in capfd.readouterr().err
    told = [message for message in caplog.messages if message.startswith("taking")]
    assert told == [f"taking {newest}, the newest checkpoint of this run"] * 4
    # What was exported can be replaced, card included.
    assert "Its weights were imported" in (out / "README.md").read_text()
    assert main(["convert", "to-hf", str(run), str(out), "--overwrite", "--format", "qwen2"]) == 0
    shutil.rmtree(newest)
    assert main(["convert", "to-hf", str(run), str(tmp_path / "other")]) == 1
    assert "is not a complete checkpoint" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["convert"], "the following arguments are required: ACTION"),
        (["convert", "to-hf", "a"], "the following arguments are required: OUT"),
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
