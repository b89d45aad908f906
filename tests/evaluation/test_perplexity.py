"""The pattern of the paper's Table 3 on a model that the test trains, and the command."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from qwen_megatron.cli.main import main
from qwen_megatron.convert.from_hf import write_weights
from qwen_megatron.errors import ConfigError, DataError
from qwen_megatron.evaluation.perplexity import Ids, measure, read_tokens
from qwen_megatron.inference.extension import parse_extension
from qwen_megatron.inference.generator import Generator
from qwen_megatron.inference.loading import load_for_inference, logits, single_process
from qwen_megatron.inference.vocabulary import QwenVocabulary
from tests.convert.random_weights import TINY, RandomWeights
from tests.support.byte_model import source_bytes, trained_model
from tests.support.trainables import groups_of

# Half of what benchmarks/bench_context.py trains on, and a narrower model: half of the time.
CONTEXT = 64
EXTENSIONS = ("none", "dynamic-ntk", "logn", "dynamic-ntk+logn", "dynamic-ntk+logn+window")


def beyond(generator: Generator, held_out: Ids, extend: str) -> float:
    """Perplexity of what lies beyond the trained length, up to four times that."""
    generator.read_with(parse_extension(extend), longest=4 * CONTEXT)
    pieces = held_out[:16_384].reshape(-1, 4 * CONTEXT)
    scores = generator.score([(piece[:CONTEXT].tolist(), piece[CONTEXT:].tolist()) for piece in pieces])
    return math.exp(-sum(score.log_probability for score in scores) / sum(score.num_tokens for score in scores))


def test_the_pattern_of_table_3() -> None:
    """Beyond the trained length, as a multiple of the perplexity within it: 1.50 plain and 1.10 when it was written."""
    with groups_of() as groups:
        model = trained_model(
            groups, steps=400, rows=8, lr=4.1e-3, context=CONTEXT, rotary_base=110.0, ffn_hidden_size=128
        )
        generator = Generator(model, groups)
        _, held_out = source_bytes()
        cells = measure(generator, held_out[:16_384], (CONTEXT,), EXTENSIONS, None)
        found = {name: beyond(generator, held_out, name) for name in EXTENSIONS}
    within = {cell.extend: cell.perplexity for cell in cells}
    native = within["none"]
    assert native < 8, "it has learned"
    # Up to the native length nothing but windows changes anything.
    assert len({within[name] for name in EXTENSIONS[:-1]}) == 1
    assert found["none"] > 1.3 * native, "plain explodes"
    assert found["dynamic-ntk"] < 1.25 * native, "dynamic NTK holds"
    assert math.log(found["dynamic-ntk"] / native) < 0.6 * math.log(found["none"] / native)
    assert found["logn"] < 1.02 * found["none"]
    assert found["dynamic-ntk+logn"] < 1.02 * found["dynamic-ntk"]
    assert found["dynamic-ntk+logn+window"] < 1.02 * found["dynamic-ntk+logn"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("perplexity") / "checkpoint"
    write_weights(RandomWeights(TINY), folder)
    return folder


def test_the_command_prints_what_full_forwards_give(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = np.random.default_rng(0).integers(0, TINY.vocab_size, 130)
    np.save(tmp_path / "ids.npy", ids)
    options = ["--lengths", "8,64", "--extend", "none,dynamic-ntk+logn", "--json", str(tmp_path / "table.json")]
    assert main(["perplexity", str(checkpoint), "--data", str(tmp_path / "ids.npy"), *options]) == 0
    printed = capsys.readouterr().out.splitlines()
    cells = json.loads((tmp_path / "table.json").read_text())
    with single_process("cpu") as groups:
        model = load_for_inference(checkpoint, groups)
        for length, cell in zip((8, 64), cells, strict=False):
            pieces = torch.from_numpy(ids[:128].reshape(-1, length))
            losses = torch.nn.functional.cross_entropy(
                logits(model, pieces)[:, :-1].flatten(0, 1), pieces[:, 1:].flatten()
            )
            assert (cell["extend"], cell["length"], cell["num_tokens"]) == ("none", length, 128 - 128 // length)
            assert cell["perplexity"] == pytest.approx(math.exp(float(losses)), rel=1e-4)
    assert printed[0].split() == ["8", "64"]
    assert printed[1].split() == ["none", *(f"{cell['perplexity']:.3f}" for cell in cells[:2])]
    # Beyond the native 32 tokens only.
    assert cells[2]["perplexity"] == cells[0]["perplexity"]
    assert cells[3]["perplexity"] != cells[1]["perplexity"]


def test_wrong_options_are_named(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "ids.npy", np.arange(20))
    source = ["perplexity", str(checkpoint), "--data", str(tmp_path / "ids.npy")]
    assert main([*source, "--lengths", "64"]) == 2
    assert "--lengths: 64 tokens a piece, but the text has 20" in capsys.readouterr().err
    assert main([*source, "--lengths", "8", "--extend", "none,yarn"]) == 2
    assert "--extend=yarn: must be one of" in capsys.readouterr().err
    (tmp_path / "text.txt").write_text("x" * 100)
    assert main(["perplexity", str(checkpoint), "--data", str(tmp_path / "text.txt"), "--lengths", "8"]) == 1
    assert "is text, but the model's tokens are not known" in capsys.readouterr().err


def test_what_data_can_be(tmp_path: Path) -> None:
    vocabulary = QwenVocabulary()
    (tmp_path / "a.txt").write_text("Hello world")
    assert read_tokens(str(tmp_path / "a.txt"), vocabulary, 10).tolist() == [9707, 1879, 151643]
    (tmp_path / "a.jsonl").write_text('{"text": "Hello world"}\n{"text": "Hello world"}\n')
    assert read_tokens(str(tmp_path / "a.jsonl"), vocabulary, 5).tolist() == [9707, 1879, 151643, 9707, 1879]
    (tmp_path / "b.jsonl").write_text('{"text": 3}\n')
    with pytest.raises(DataError, match=r"b\.jsonl: record 1"):
        read_tokens(str(tmp_path / "b.jsonl"), vocabulary, 5)
    np.save(tmp_path / "a.npy", np.arange(6, dtype=np.int32))
    with pytest.raises(DataError, match="must hold int64 ids"):
        read_tokens(str(tmp_path / "a.npy"), vocabulary, 5)
    with pytest.raises(DataError, match="no corpus there"):
        read_tokens(str(tmp_path / "corpus"), vocabulary, 5)


def test_too_short_a_text_is_refused() -> None:
    with groups_of() as groups, pytest.raises(ConfigError, match="give more text"):
        measure(Generator(trained_model(groups, 1, 1, 1e-3), groups), np.arange(3), (4,), ("none",), None)
