"""`qwen-megatron generate` against transformers' own greedy search on the exported folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data_tools.tokenizer.qwen import NUM_TOKENS, QwenTokenizer
from qwen_megatron.cli.main import main
from tests.convert.random_weights import TINY, RandomWeights

FIXTURE = Path(__file__).parents[1] / "fixtures" / "qwen1-mini"
PROMPT = "def main(你好"


@pytest.fixture(scope="module")
def folders(qwen_checkpoint: Path, qwen_folder: Path) -> tuple[Path, Path]:
    """A checkpoint with Qwen's vocabulary and its export."""
    return qwen_checkpoint, qwen_folder


@pytest.fixture(scope="module")
def continuation(folders: tuple[Path, Path]) -> str:
    """What transformers makes of the prompt, six tokens more."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folders[1], local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folders[1], dtype=torch.float32, local_files_only=True).eval()
    ids = model.generate(**tokenizer(PROMPT, return_tensors="pt"), max_new_tokens=6)[0].tolist()
    assert len(ids) == len(QwenTokenizer().encode(PROMPT)) + 6
    assert max(ids) < NUM_TOKENS
    text = tokenizer.decode(ids)
    assert text.startswith(PROMPT)
    return str(text)


@pytest.mark.parametrize("source", [0, 1], ids=["checkpoint", "hf"])
def test_the_continuation_is_that_of_transformers(
    source: int, folders: tuple[Path, Path], continuation: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["generate", str(folders[source]), "--prompt", PROMPT, "--max-new-tokens", "6"]) == 0
    assert capsys.readouterr().out == continuation + "\n"


def test_an_empty_prompt_is_wrong_usage(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(folders[0]), "--prompt", ""]) == 2
    assert "--prompt='': must have at least one character" in capsys.readouterr().err


def test_text_needs_qwens_vocabulary(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(FIXTURE), "--prompt", "x"]) == 1
    assert "its vocabulary has 160 rows, Qwen's tokenizer 151851 tokens" in capsys.readouterr().err


def test_several_prompts_are_continued_together(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    single = []
    for prompt in (PROMPT, "x"):
        assert main(["generate", str(folders[0]), "--prompt", prompt, "--max-new-tokens", "3"]) == 0
        single.append(capsys.readouterr().out)
    assert main(["generate", str(folders[0]), "--prompt", PROMPT, "--prompt", "x", "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr().out == "".join(single)
    options = ["--max-new-tokens", "3", "--temperature", "5", "--top-p", "0.9", "--json"]
    assert main(["generate", str(folders[0]), "--prompt", "x", "--prompt", PROMPT, *options]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["prompt"] for record in records] == ["x", PROMPT]
    assert all(max(record["tokens"]) < NUM_TOKENS and len(record["tokens"]) == 3 for record in records)
    assert {record["finish_reason"] for record in records} == {"length"}


def test_ids_are_continued_as_by_transformers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Any vocabulary; no tokenizer is asked for."""
    from transformers import AutoModelForCausalLM

    from qwen_megatron.convert.from_hf import write_weights

    write_weights(RandomWeights(TINY), tmp_path / "checkpoint")
    assert main(["convert", "to-hf", str(tmp_path / "checkpoint"), str(tmp_path / "hf"), "--format", "qwen2"]) == 0
    ids = np.array([[1, 2, 3, 4], [60, 3, 2, 9]])
    np.save(tmp_path / "ids.npy", ids)
    options = ["--input-ids", str(tmp_path / "ids.npy"), "--output", str(tmp_path / "new.npy")]
    assert main(["generate", str(tmp_path / "checkpoint"), *options, "--max-new-tokens", "7"]) == 0
    new = np.load(tmp_path / "new.npy")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32, local_files_only=True).eval()
    found = model.generate(torch.from_numpy(ids), max_new_tokens=7, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert np.array_equal(new, found[:, 4:].numpy())
    assert new.dtype == np.int64
    stop = int(new[0, 2])
    assert main(["generate", str(tmp_path / "hf"), *options, "--max-new-tokens", "7", "--stop-id", str(stop)]) == 0
    stopped = np.load(tmp_path / "new.npy")
    assert (stopped[0, list(new[0]).index(stop) :] == stop).all()
    capsys.readouterr()
    assert main(["generate", str(tmp_path / "hf"), "--input-ids", str(tmp_path / "ids.npy"), "--prompt", ""]) == 2
    printed = capsys.readouterr().err
    assert "give either --prompt or --input-ids" in printed
    assert "--input-ids and --output go together" in printed


def test_a_layout_that_does_not_divide_the_model_is_refused(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(folders[1])
    assert main(["generate", source, "--prompt", "x", "--pipeline-model-parallel-size", "3"]) == 2
    assert "1 process is no multiple of 1 tensor-parallel x 3 pipeline-parallel ones" in capsys.readouterr().err
    assert main(["generate", source, "--prompt", "x", "--extend", "yarn", "--temperature", "-1"]) == 2
    assert "temperature=-1: must be between 0" in capsys.readouterr().err
    assert main(["generate", source, "--prompt", "x", "--windows", "1,2,3"]) == 2
    assert "--windows=1,2,3: has 3 numbers, the model 2 layers" in capsys.readouterr().err
