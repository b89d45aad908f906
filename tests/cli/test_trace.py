"""The documents of a step, from its row and the start that trained it."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_tools.corpus.index import CorpusIndex
from data_tools.corpus.reader import Corpus
from qwen_megatron.checkpoint.state import config_sections
from qwen_megatron.cli.main import main
from qwen_megatron.config.load import load_config
from qwen_megatron.config.resolve import resolve
from qwen_megatron.jobs.blend import open_blend
from tests.support.corpora import write_byte_corpus


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the corpora `one` and `two`."""
    folder = tmp_path_factory.mktemp("corpora")
    for name, count in (("one", 10), ("two", 12)):
        write_byte_corpus(folder / name, count)
    return folder


def start(folder: Path, step: int, *overrides: str) -> dict[str, Any]:
    """A row of starts.jsonl, of a start in the corpora's folder whose settings name them by relative paths."""
    given = ["model.preset=tiny", "training.seq_length=32", "training.global_batch_size=4", "data.eval_samples=4"]
    settings = config_sections(resolve(load_config(None, [*given, *overrides])))
    there = {**settings["data"], "blend": [str(folder / prefix) for prefix in settings["data"]["blend"]]}
    dataset = open_blend(resolve(load_config(None, [*given, *overrides, f"data.blend={json.dumps(there['blend'])}"])))
    data = {prefix: dataset.sources(0)[str(folder / prefix)] for prefix in settings["data"]["blend"]}
    return {"step": step, "working_directory": str(folder), "config": settings, "data": data}


def write_run(directory: Path, sizes: Sequence[int], starts: Sequence[dict[str, Any]]) -> Path:
    """The files of a run whose steps took so many samples."""
    directory.mkdir()
    consumed = np.cumsum(sizes).tolist()
    rows = [
        {"step": step, "loss": 1.0, "batch_size": size, "consumed_samples": end}
        for step, (size, end) in enumerate(zip(sizes, consumed, strict=True), start=1)
    ]
    for name, content in (("metrics", rows), ("starts", starts)):
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    return directory


@pytest.fixture
def run(corpora: Path, tmp_path: Path) -> Path:
    """Fifty steps of one start."""
    return write_run(tmp_path / "run", [4] * 50, [start(corpora, 0, "data.blend=[one]")])


def traced(run: Path, step: int, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    assert main(["trace", str(run), "--step", str(step), "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def refused(run: Path, step: int, status: int, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["trace", str(run), "--step", str(step)]) == status
    out, err = capsys.readouterr()
    assert out == ""
    return err


def test_a_step_names_its_documents(run: Path, corpora: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = traced(run, 3, capsys)
    assert [place["sample"] for place in places] == [8, 9, 10, 11]
    corpus, index = Corpus.open(corpora / "one"), CorpusIndex.open(corpora / "one")
    for place in places:
        first, stop = place["tokens"]
        assert stop - first == 33
        # The documents named are exactly those that the tokens come from.
        documents = [index.document(number) for number in place["documents"]]
        assert documents[0][0] <= first < documents[0][0] + documents[0][1]
        assert documents[-1][0] < stop <= documents[-1][0] + documents[-1][1]
        text = np.concatenate([corpus.tokens(begin, length) for begin, length in documents])
        offset = first - documents[0][0]
        assert np.array_equal(text[offset : offset + 33], corpus.tokens(first, 33))


def test_the_line_for_people_says_the_same(run: Path, corpora: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", str(run), "--step", "50"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    # Whatever folder the caller is in.
    assert lines[0].startswith(f"sample 196: {corpora / 'one'} tokens ")
    assert ", epoch " in lines[0]
    assert ", document" in lines[0]


def test_a_step_of_a_batch_size_ramp_names_its_own_samples(
    corpora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", [2, 2, 3, 3, 4, 4], [start(corpora, 0, "data.blend=[one]")])
    for step, samples in ((1, [0, 1]), (4, [7, 8, 9]), (5, [10, 11, 12, 13])):
        assert [place["sample"] for place in traced(run, step, capsys)] == samples


def test_every_step_is_looked_up_under_the_start_that_trained_it(
    corpora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Batch, data, order and length have changed, as a user may allow; a start that was refused left no row."""
    first = start(corpora, 0, "data.blend=[one]")
    # Trained steps 11 to 14, of which the next start went back to 10.
    gone = start(corpora, 10, "data.blend=[one]", "training.seed=9")
    second = start(corpora, 10, "data.blend=[two]", "training.seed=7", "training.seq_length=16")
    # Had nothing left to train.
    idle = start(corpora, 12, "data.blend=[one]", "training.seed=8")
    run = write_run(tmp_path / "run", [4] * 10 + [6] * 2, [first, gone, second, idle])
    alone = write_run(tmp_path / "alone", [4] * 10, [first])
    assert traced(run, 10, capsys) == traced(alone, 10, capsys)
    places = traced(run, 11, capsys)
    assert [place["sample"] for place in places] == list(range(40, 46))
    assert {place["corpus"] for place in places} == {str(corpora / "two")}
    two = open_blend(
        resolve(
            load_config(
                None,
                [
                    "model.preset=tiny",
                    "training.seed=7",
                    "training.seq_length=16",
                    "data.eval_samples=4",
                    f"data.blend=[{corpora / 'two'}]",
                ],
            )
        )
    )
    assert [place["tokens"][0] for place in places] == [16 * two.train_id(number).sample for number in range(40, 46)]


def test_another_corpus_in_its_place_is_refused(
    corpora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = Path(shutil.copytree(corpora, tmp_path / "moved"))
    run = write_run(tmp_path / "run", [4] * 5, [start(moved, 0, "data.blend=[one]")])
    for suffix in ("bin", "idx", "json", "crc"):
        shutil.copy(f"{corpora / 'two'}.{suffix}", f"{moved / 'one'}.{suffix}")
    told = refused(run, 3, 1, capsys)
    assert f"{moved / 'one'}: has the content " in told
    assert "the step was trained on " in told


def test_what_is_not_known_is_said(
    run: Path, corpora: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert "has a row of steps 1 to 50, but none of this one" in refused(run, 51, 2, capsys)
    assert "none of this one" in refused(run, 0, 2, capsys)
    # Written before starts recorded where they were and what they read.
    old = start(corpora, 0, f"data.blend=[{corpora / 'one'}]")
    del old["working_directory"], old["data"]
    (run / "starts.jsonl").write_text(json.dumps(old) + "\n")
    with caplog.at_level(logging.WARNING):
        assert len(traced(run, 3, capsys)) == 4
    assert "does not tell the content of its corpora" in caplog.text
    (run / "starts.jsonl").unlink()
    assert "has no start before this step, so the settings it was trained with are not known" in refused(
        run, 3, 2, capsys
    )


@pytest.mark.parametrize("row", [{"batch_size": 4}, {"batch_size": 9, "consumed_samples": 4}, {"batch_size": "4"}])
def test_a_damaged_row_names_no_samples(row: dict[str, Any], run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 2.0, **row}) + "\n")
    assert "does not tell its samples" in refused(run, 1, 2, capsys)


def test_a_folder_without_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "holds neither metrics.jsonl nor starts.jsonl" in refused(tmp_path, 1, 2, capsys)
