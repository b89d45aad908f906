"""What a run leaves in metrics.jsonl and for TensorBoard, and when it evaluates."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest

from qwen_megatron.train.hooks.console import ConsoleHook
from qwen_megatron.train.hooks.evaluation import EvaluationHook
from qwen_megatron.train.hooks.metrics import MetricsHook, TensorBoardHook, drop_rows_after
from qwen_megatron.train.run import EvaluationRecord, Hook, Run
from tests.support.hooks import evaluation, make_run, record

FIELDS = {
    "step",
    "loss",
    "loss_hex",
    "grad_norm",
    "learning_rate",
    "consumed_samples",
    "batch_size",
    "consumed_tokens",
    "step_seconds",
    "phase_seconds",
    "tokens_per_second",
    "model_flops_utilization",
    "peak_memory_bytes",
    "own_seconds",
    "skipped_steps",
    "spike",
}


# metrics.jsonl


def read_rows(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def run_metrics(directory: Path, steps: range, *, iteration: int = 0, evaluated: tuple[int, ...] = ()) -> None:
    hook, run = MetricsHook(), make_run(directory, iteration=iteration)
    hook.on_start(run)
    for step in evaluated:
        if step <= iteration:
            hook.on_evaluation(run, evaluation(step))
    for step in steps:
        hook.on_step(run, record(step, loss=1.0 + 1 / step))
        if step in evaluated:
            hook.on_evaluation(run, evaluation(step))
    hook.close()


def test_rows_have_the_documented_fields(tmp_path: Path) -> None:
    run_metrics(tmp_path, range(1, 4), evaluated=(2,))
    rows = read_rows(tmp_path)
    assert [set(row) for row in rows if "loss" in row] == [FIELDS] * 3
    third = rows[-1]
    assert third["step"] == 3
    assert float.fromhex(third["loss_hex"]) == third["loss"] == 1.0 + 1 / 3
    assert third["model_flops_utilization"] is None
    assert third["consumed_tokens"] == 1536
    assert third["peak_memory_bytes"] == 3 << 29
    (row,) = (row for row in rows if "eval_loss" in row)
    assert row == {"step": 2, "eval_loss": 2.5, "perplexity": math.exp(2.5), "eval_seconds": 0.75}
    assert list(third)[:3] == ["step", "loss", "loss_hex"]


def test_rows_are_on_disk_after_every_step(tmp_path: Path) -> None:
    hook, run = MetricsHook(), make_run(tmp_path)
    hook.on_start(run)
    hook.on_step(run, record(1))
    assert [row["step"] for row in read_rows(tmp_path)] == [1]
    hook.close()


def test_going_on_replaces_the_rows_of_later_steps(tmp_path: Path) -> None:
    run_metrics(tmp_path, range(1, 31), evaluated=(0, 10, 20, 30))
    run_metrics(tmp_path, range(21, 26), iteration=20)
    rows = read_rows(tmp_path)
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 26))
    assert [row["step"] for row in rows if "eval_loss" in row] == [0, 10, 20]


def test_starting_anew_leaves_no_row_of_the_run_before(tmp_path: Path) -> None:
    """A run killed before its first checkpoint starts again from step 0, evaluation included."""
    run_metrics(tmp_path, range(1, 6), evaluated=(0,))
    run_metrics(tmp_path, range(1, 3), evaluated=(0,))
    assert [row["step"] for row in read_rows(tmp_path)] == [0, 1, 2]


@pytest.mark.parametrize("torn", ['{"step": 12, "lo', '{"step": 12, "loss": 1.0', "{", "\0\0\0\0", "[]", "12"])
def test_a_torn_last_line_goes(tmp_path: Path, torn: str) -> None:
    run_metrics(tmp_path, range(1, 12))
    path = tmp_path / "metrics.jsonl"
    with path.open("a") as stream:
        stream.write(torn)
    drop_rows_after(path, 11)
    assert [row["step"] for row in read_rows(tmp_path)] == list(range(1, 12))
    assert path.read_text().endswith("}\n")
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_whole_last_line_without_its_end_stays(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')
    drop_rows_after(path, 5)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_dropping_rows_of_no_file_makes_none(tmp_path: Path) -> None:
    drop_rows_after(tmp_path / "metrics.jsonl", 3)
    assert list(tmp_path.iterdir()) == []


def test_rows_are_standard_json_whatever_the_loss(tmp_path: Path) -> None:
    hook, run = MetricsHook(), make_run(tmp_path)
    hook.on_start(run)
    hook.on_evaluation(run, dataclasses.replace(evaluation(1), eval_loss=800.0, metrics={"perplexity": math.inf}))
    hook.close()

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=refuse)["perplexity"] is None


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path, rank=1)
    for hook in (MetricsHook(), TensorBoardHook()):
        hook.on_start(run)
        hook.on_step(run, record(1))
        hook.on_evaluation(run, evaluation(1))
        hook.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", [MetricsHook, TensorBoardHook])
def test_closing_before_the_start_is_allowed(make: type[Hook]) -> None:
    make().close()


# TensorBoard


def scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory / "tensorboard"))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def run_tensorboard(directory: Path, steps: range, iteration: int = 0) -> None:
    hook, run = TensorBoardHook(), make_run(directory, iteration=iteration)
    hook.on_start(run)
    for step in steps:
        hook.on_step(run, record(step, loss=float(step)))
    hook.on_evaluation(run, evaluation(steps[-1]))
    hook.close()


def test_tensorboard_files_are_readable(tmp_path: Path) -> None:
    run_tensorboard(tmp_path, range(1, 5))
    read = scalars(tmp_path)
    assert set(read) >= {"train/loss", "train/grad_norm", "train/learning_rate", "train/tokens_per_second", "eval/loss"}
    assert read["train/loss"] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    assert read["train/learning_rate"][0][1] == pytest.approx(3e-4)
    assert read["eval/loss"] == [(4, 2.5)]


def test_tensorboard_hides_the_steps_that_are_done_again(tmp_path: Path) -> None:
    run_tensorboard(tmp_path, range(1, 8))
    run_tensorboard(tmp_path, range(4, 6), iteration=3)
    assert [step for step, _ in scalars(tmp_path)["train/loss"]] == [1, 2, 3, 4, 5]


# Evaluation


class Recorder(Hook):
    """Steps of the evaluations it was told of."""

    def __init__(self) -> None:
        self.records: list[EvaluationRecord] = []

    def on_evaluation(self, run: Run, record: EvaluationRecord) -> None:
        self.records.append(record)


def evaluations(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    steps: range,
    *overrides: str,
    iteration: int = 0,
    loss: float = 2.0,
) -> list[EvaluationRecord]:
    recorder = Recorder()
    hook = EvaluationHook(10)
    run = make_run(directory, *overrides, iteration=iteration, hooks=(hook, recorder))
    monkeypatch.setattr(run.job, "evaluate", lambda _, corpus: (loss + (corpus is not None), {}))
    hook.on_start(run)
    for step in steps:
        run.state.iteration = step
        hook.on_step(run, record(step))
    hook.on_end(run)
    return recorder.records


@pytest.mark.parametrize(
    ("steps", "iteration", "evaluated"),
    [
        (range(1, 26), 0, [0, 10, 20, 25]),
        (range(1, 21), 0, [0, 10, 20]),
        (range(11, 26), 10, [20, 25]),
        (range(8, 9), 7, [8]),
    ],
)
def test_evaluates_at_start_at_intervals_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: range, iteration: int, evaluated: list[int]
) -> None:
    records = evaluations(tmp_path, monkeypatch, steps, iteration=iteration)
    assert [record.step for record in records] == evaluated


def test_every_held_out_corpus_has_its_own_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = evaluations(tmp_path, monkeypatch, range(1, 11), "data.eval_blend={wiki: data/wiki}")
    assert [(one.step, one.corpus, one.eval_loss) for one in records] == [
        (0, None, 2.0),
        (0, "wiki", 3.0),
        (10, None, 2.0),
        (10, "wiki", 3.0),
    ]
    hook, board, console = MetricsHook(), TensorBoardHook(), ConsoleHook(1, io.StringIO())
    run = make_run(tmp_path)
    for told in (hook, board, console):
        told.on_start(run)
        for one in records:
            told.on_evaluation(run, one)
        told.close()
    rows = read_rows(tmp_path)
    assert [row.get("corpus") for row in rows] == [None, "wiki", None, "wiki"]
    assert "corpus" not in rows[0], "rows of a run without other corpora are what they were"
    assert scalars(tmp_path)["eval/loss"] == [(0, 2.0), (10, 2.0)]
    assert scalars(tmp_path)["eval/wiki/loss"] == [(0, 3.0), (10, 3.0)]
    assert "eval   10/1000  wiki  loss 3.0000" in console.stream.getvalue()  # type: ignore[attr-defined]
