"""The documents of a step, from the configuration alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from data_tools.corpus.index import CorpusIndex
from data_tools.corpus.reader import Corpus
from qwen_megatron.cli.main import main


@pytest.fixture
def run_directory(code_corpus: Path, tmp_path: Path) -> Path:
    configuration = {
        "model": {"preset": "tiny"},
        "training": {"train_iters": 50, "seq_length": 128, "global_batch_size": 4},
        "data": {"blend": [str(code_corpus)], "eval_samples": 4},
        "checkpoint": {"directory": str(tmp_path)},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(configuration))
    return tmp_path


def test_a_step_names_its_documents(run_directory: Path, code_corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", str(run_directory), "--step", "3", "--json"]) == 0
    places = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [place["sample"] for place in places] == [8, 9, 10, 11]
    corpus, index = Corpus.open(code_corpus), CorpusIndex.open(code_corpus)
    for place in places:
        start, stop = place["tokens"]
        assert stop - start == 129
        # The documents named are exactly those that the tokens come from.
        documents = [index.document(number) for number in place["documents"]]
        assert documents[0][0] <= start < documents[0][0] + documents[0][1]
        assert documents[-1][0] < stop <= documents[-1][0] + documents[-1][1]
        text = np.concatenate([corpus.tokens(first, length) for first, length in documents])
        offset = start - documents[0][0]
        assert np.array_equal(text[offset : offset + 129], corpus.tokens(start, 129))


def test_the_line_for_people_says_the_same(run_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", str(run_directory), "--step", "50"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("sample 196: ")
    assert ", epoch " in lines[0]
    assert ", document" in lines[0]


def test_a_step_of_a_batch_size_ramp_names_its_own_samples(
    run_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 2 samples up to sample 4, of 3 up to 8, then of 4: steps start at 0, 2, 4, 7, 10."""
    configuration = yaml.safe_load((run_directory / "config.yaml").read_text())
    configuration["training"] |= {
        "rampup_start_batch_size": 2,
        "rampup_batch_size_increment": 1,
        "rampup_samples": 8,
    }
    (run_directory / "config.yaml").write_text(yaml.safe_dump(configuration))
    for step, samples in ((1, [0, 1]), (4, [7, 8, 9]), (5, [10, 11, 12, 13]), (52, [198, 199, 200, 201])):
        assert main(["trace", str(run_directory), "--step", str(step), "--json"]) == 0
        assert [json.loads(line)["sample"] for line in capsys.readouterr().out.splitlines()] == samples
    assert main(["trace", str(run_directory), "--step", "53"]) == 2
    assert "training.train_iters(50) = 52 steps with the ramp" in capsys.readouterr().err


@pytest.mark.parametrize("step", ["0", "51"])
def test_a_step_outside_of_the_run_is_refused(
    step: str, run_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trace", str(run_directory), "--step", step]) == 2
    assert "must be between 1 and training.train_iters(50)" in capsys.readouterr().err


def test_a_folder_without_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", str(tmp_path), "--step", "1"]) == 2
    assert "holds no config.yaml" in capsys.readouterr().err
