"""Averages, standard errors, and the table beside the paper's numbers."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

import pytest

from qwen_megatron.evaluation.evaluate import Report, report_json, report_table
from qwen_megatron.evaluation.exam import ExamResult, sit
from qwen_megatron.evaluation.paper import PAPER
from qwen_megatron.evaluation.prompts import prepare
from qwen_megatron.evaluation.results import averaged
from qwen_megatron.evaluation.task_file import find_task, known_tasks
from tests.evaluation.scripted import FILES, text_model, write_benchmarks, write_jsonl


def test_of_items_and_of_groups() -> None:
    values = [("a", 1.0), ("a", 0.0), ("a", 0.0), ("b", 1.0), ("b", 1.0)]
    items = averaged(values, by_group=False)
    assert items.value == 0.6
    assert items.stderr == pytest.approx(statistics.stdev([1, 0, 0, 1, 1]) / math.sqrt(5))
    groups = averaged(values, by_group=True)
    assert groups.value == pytest.approx((1 / 3 + 1) / 2)
    assert groups.stderr == pytest.approx(statistics.stdev([1, 0, 0]) / math.sqrt(3) / 2)
    assert averaged([("a", 1.0)], by_group=False).stderr is None


def test_every_number_of_the_paper_belongs_to_a_task_and_its_shots() -> None:
    assert {one.task for one in PAPER} <= set(known_tasks())
    for one in PAPER:
        assert one.shots == (0 if one.form == "chat" else find_task(one.task).shots)
        assert 0 < one.value < 100
        assert one.source


def result(folder: Path, task: str, *, limit: int | None = None, is_chat: bool = False) -> ExamResult:
    model, _ = text_model(lambda prompt: " B" if "11" in prompt else " C")
    return sit(prepare(find_task(task), folder, limit=limit, is_chat=is_chat), model, None)


def test_the_table(tmp_path: Path) -> None:
    write_jsonl(write_benchmarks(tmp_path) / "mmlu/test.jsonl", [*FILES["mmlu/test.jsonl"], *FILES["mmlu/dev.jsonl"]])
    harness = {"versions": {}, "results": {"mine": {"alias": "mine", "acc,none": 0.25, "acc_stderr,none": 0.1}}}
    report = Report((result(tmp_path, "mmlu"), result(tmp_path, "gsm8k")), harness)
    lines = report_table(report)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:5]]
    assert cells[0] == [
        "task",
        "form",
        "shots",
        "metric",
        "questions",
        "result",
        *(f"Qwen-{n}B" for n in (1.8, 7, 14, 72)),
    ]
    assert cells[2] == ["mmlu", "plain", "5", "accuracy", "7", "14.3 ± 14.3", "45.3", "58.2", "66.3", "77.4"]
    assert cells[3] == ["gsm8k", "plain", "8", "accuracy", "1", "0.0", "32.3", "51.7", "61.3", "78.9"]
    assert cells[4] == ["lm-eval:mine", "", "", "acc", "", "0.2500 ± 0.1000", "", "", "", ""]
    assert "Qwen-7B: Qwen Technical Report (arXiv 2309.16609), table 2" in lines
    written = json.loads(json.dumps(report_json(report, Path("runs/first"))))
    assert written["tasks"][0]["metrics"]["accuracy"]["count"] == 7
    assert written["tasks"][0]["groups"] == {"abstract_algebra": written["tasks"][0]["metrics"]["accuracy"]}
    assert {one["percent"] for one in written["tasks"][0]["paper"]} == {45.3, 58.2, 66.3, 77.4}
    assert written["harness"]["results"]["mine"]["acc,none"] == 0.25


def test_parts_and_other_forms_are_not_compared(tmp_path: Path) -> None:
    write_jsonl(write_benchmarks(tmp_path) / "mmlu/test.jsonl", [*FILES["mmlu/test.jsonl"], *FILES["mmlu/dev.jsonl"]])
    lines = report_table(Report((result(tmp_path, "mmlu", limit=2),), None))
    assert "Qwen-7B" not in "\n".join(lines)
    assert lines[-1] == "mmlu: 2 of 7 questions; not to be compared with others"
    lines = report_table(Report((result(tmp_path, "mmlu", is_chat=True),), None))
    assert "Qwen-7B" not in "\n".join(lines)
