"""`qwen-megatron generate` against transformers' own greedy search on the exported folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from data_tools.tokenizer.qwen import NUM_TOKENS, QwenTokenizer
from qwen_megatron.cli.main import main
from tests.convert.random_weights import TINY, RandomWeights

FIXTURE = Path(__file__).parents[1] / "fixtures" / "qwen1-mini"
PROMPT = "def main(你好"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint with Qwen's vocabulary and its export."""
    from qwen_megatron.convert.from_hf import write_weights

    folder = tmp_path_factory.mktemp("generate")
    model = dataclasses.replace(TINY, vocab_size=151936, hidden_size=16, kv_channels=4, tie_word_embeddings=True)
    write_weights(RandomWeights(model), folder / "checkpoint")
    assert main(["convert", "to-hf", str(folder / "checkpoint"), str(folder / "hf"), "--format", "qwen2"]) == 0
    return folder / "checkpoint", folder / "hf"


@pytest.mark.parametrize("source", [0, 1], ids=["checkpoint", "hf"])
def test_the_continuation_is_that_of_transformers(
    source: int, folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert main(["generate", str(folders[source]), "--prompt", PROMPT, "--max-new-tokens", "6"]) == 0
    printed = capsys.readouterr().out
    tokenizer = AutoTokenizer.from_pretrained(folders[1], local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folders[1], dtype=torch.float32, local_files_only=True).eval()
    ids = model.generate(**tokenizer(PROMPT, return_tensors="pt"), max_new_tokens=6)[0].tolist()
    assert len(ids) == len(QwenTokenizer().encode(PROMPT)) + 6
    assert max(ids) < NUM_TOKENS
    assert printed == tokenizer.decode(ids) + "\n"
    assert printed.startswith(PROMPT)


def test_an_empty_prompt_is_wrong_usage(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(folders[0]), "--prompt", ""]) == 2
    assert "--prompt='': must have at least one character" in capsys.readouterr().err


def test_text_needs_qwens_vocabulary(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(FIXTURE), "--prompt", "x"]) == 1
    assert "its vocabulary has 160 rows, Qwen's tokenizer 151851 tokens" in capsys.readouterr().err
