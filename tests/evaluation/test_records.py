"""Files of benchmarks: what is wrong with a record is said with file, line, rule and fix."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from qwen_megatron.errors import DataError
from qwen_megatron.evaluation.prompts import prepare
from qwen_megatron.evaluation.task_file import find_task
from tests.evaluation.scripted import FILES, write_benchmarks

GOOD = {"question": "1?", "answer": "#### 1"}


def written(folder: Path, *lines: Any) -> Path:
    """The benchmarks with another test file of gsm8k."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (write_benchmarks(folder) / "gsm8k/test.jsonl").write_text("\n".join(texts) + "\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"test.jsonl:3: .*must be a JSON object on one line, mend or remove it"),
        ("[1]", r"test.jsonl:3: the record is an array, not an object; must be"),
        ({"question": "2?"}, r"test.jsonl:3: no field 'answer', which must be a text; the record has 'question'"),
        ({"question": 2, "answer": "#### 1"}, r"test.jsonl:3: field 'question' must be a text"),
        ({"question": "2?", "answer": "1"}, r"test.jsonl:3: 'answer' must end in a line `#### NUMBER`"),
        ({"question": "2?", "answer": "#### many"}, r"test.jsonl:3: 'answer' must end in a line"),
    ],
)
def test_a_broken_record(tmp_path: Path, line: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepare(find_task("gsm8k"), written(tmp_path, GOOD, "", line, GOOD))


def change(folder: Path, name: str, **changed: Any) -> Path:
    write_benchmarks(folder)
    (folder / name).write_text(json.dumps({**FILES[name][0], **changed}) + "\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("task", "name", "changed", "message"),
    [
        ("mmlu", "mmlu/test.jsonl", {"answer": "E"}, "test.jsonl:1: the expected answer 'E' must be one of A, B, C, D"),
        ("mmlu", "mmlu/test.jsonl", {"A": None}, "test.jsonl:1: field 'A' must be a text or a number"),
        ("math", "math/test.jsonl", {"solution": "3"}, r"test.jsonl:1: 'solution' must have its answer in \\boxed"),
        ("math401", "math401/test.jsonl", {"response": "x"}, "test.jsonl:1: the expected answer 'x' must be a number"),
        ("mbpp", "mbpp.jsonl", {"task_id": "eleven"}, "mbpp.jsonl:1: field 'task_id' is 'eleven'; records are chosen"),
        ("mbpp", "mbpp.jsonl", {"task_id": 700}, "mbpp.jsonl: holds no record with task_id from 11 to 510"),
        ("mbpp", "mbpp.jsonl", {"test_list": ["a", 1]}, "mbpp.jsonl:1: field 'test_list' must be a list of texts"),
        ("bbh", "bbh/test.jsonl", {"target": ""}, "test.jsonl:1: the expected answer is empty"),
        (
            "react",
            "react/test.jsonl",
            {"tools": [{}]},
            "test.jsonl:1: field 'tools' must be a list of objects with name",
        ),
    ],
)
def test_a_record_that_cannot_be_used(
    tmp_path: Path, task: str, name: str, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        prepare(find_task(task), change(tmp_path, name, **changed))


def test_a_missing_file_says_what_it_must_hold(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"gsm8k/test.jsonl: no such file; must hold JSON Lines with the fields question"
    ):
        prepare(find_task("gsm8k"), tmp_path)


def test_an_empty_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no record; give the benchmark's whole file"):
        prepare(find_task("gsm8k"), written(tmp_path, ""))


def test_compressed_files_are_found_by_their_content(tmp_path: Path) -> None:
    path = write_benchmarks(tmp_path) / "gsm8k/test.jsonl"
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert len(prepare(find_task("gsm8k"), tmp_path).items) == 1
