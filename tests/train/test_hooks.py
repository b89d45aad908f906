"""What a run leaves on the console, in metrics.jsonl and for TensorBoard."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qwen_megatron.config.load import load_config
from qwen_megatron.config.resolve import ResolvedConfig, resolve
from qwen_megatron.jobs.pretrain import Pretraining
from qwen_megatron.train.hooks.console import MOST_COLUMNS, ConsoleHook, duration
from qwen_megatron.train.hooks.evaluation import EvaluationHook
from qwen_megatron.train.hooks.metrics import MetricsHook, TensorBoardHook, drop_rows_after
from qwen_megatron.train.run import EvaluationRecord, Hook, Run, StepRecord
from qwen_megatron.train.state import TrainState
from qwen_megatron.train.step_timers import StepTimers

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


PHASE_SECONDS = {
    "forward": 0.75,
    "backward": 1.25,
    "communication": 0.25,
    "optimizer": 0.125,
    "data": 0.0625,
    "other": 0.0625,
}


def make_run(directory: Path, *overrides: str, iteration: int = 0, rank: int = 0, hooks: tuple[Hook, ...] = ()) -> Run:
    given = [
        "parallel.platform=cpu",
        "model.preset=tiny",
        "training.train_iters=1000",
        f"checkpoint.directory={directory}",
        *overrides,
    ]
    groups: Any = SimpleNamespace(rank=rank)
    unused: Any = None
    config = resolve(load_config(None, given))
    state = TrainState(iteration=iteration, consumed_samples=config.training.batch_sizes.samples_after(iteration))
    return Run(
        job=Counted(config),
        directory=directory,
        groups=groups,
        platform=unused,
        timers=StepTimers(),
        trainables={},
        state=state,
        hooks=hooks,
    )


class Counted(Pretraining):
    """Pretraining of which nothing is asked but how many steps there are."""

    def __init__(self, config: ResolvedConfig):
        self.config = config

    def check_data(self) -> None:
        """There is none."""

    def evaluated_corpora(self) -> list[str | None]:
        return [None, "wiki"] if self.config.data.eval_blend else [None]


def record(step: int, **others: Any) -> StepRecord:
    values: dict[str, Any] = {
        "loss": 3.0625,
        "grad_norm": 1.23456,
        "learning_rate": 3e-4,
        "batch_size": 2048,
        "consumed_samples": 2048 * step,
        "consumed_tokens": 512 * step,
        "step_seconds": 2.5,
        "phase_seconds": PHASE_SECONDS,
        "tokens_per_second": 204_800.4,
        "model_flops_utilization": None,
        "peak_memory_bytes": 3 << 29,
    }
    return StepRecord(step=step, **(values | others))


def evaluation(step: int, loss: float = 2.5) -> EvaluationRecord:
    return EvaluationRecord(step=step, eval_loss=loss, perplexity=math.exp(loss), eval_seconds=0.75)


# Console


def printed(hook: ConsoleHook, run: Run, steps: range, **others: Any) -> list[str]:
    for step in steps:
        hook.on_step(run, record(step, **others))
    return hook.stream.getvalue().splitlines()  # type: ignore[attr-defined]


def test_console_line_says_everything(tmp_path: Path) -> None:
    (line,) = printed(ConsoleHook(1, io.StringIO()), make_run(tmp_path), range(7, 8))
    assert re.split(" {2,}", line) == [
        "step",
        "7/1000",
        "loss 3.0625",
        "norm 1.23",
        "lr 3.00e-04",
        "2.50 s",
        "204.8k tok/s",
        "1.50 GiB",
        "left 41m 22s",
    ]


def test_console_shows_the_share_of_the_peak_where_it_is_known(tmp_path: Path) -> None:
    (line,) = printed(ConsoleHook(1, io.StringIO()), make_run(tmp_path), range(7, 8), model_flops_utilization=0.4321)
    assert "  MFU 43.2%  " in line


@pytest.mark.parametrize("metrics", [{}, {"z_loss": 1.23456e-7, "accuracy": 0.5}])
def test_console_lines_fit_100_columns(tmp_path: Path, metrics: dict[str, float]) -> None:
    others = {"loss": 12.3456, "grad_norm": 1.2345e12, "model_flops_utilization": 0.4321, "metrics": metrics}
    run = make_run(tmp_path, "training.train_iters=1000000")
    lines = printed(ConsoleHook(1, io.StringIO()), run, range(123_456, 123_460), step_seconds=123.45, **others)
    assert max(map(len, lines)) <= MOST_COLUMNS == 100
    assert all(line.startswith("step  123") and "loss 12.3456" in line and "left " in line for line in lines)
    assert len({re.sub("[0-9.]+", "", line) for line in lines}) == 1, "columns do not come and go"


def test_console_notes_spikes_and_skipped_steps(tmp_path: Path) -> None:
    hook, run = ConsoleHook(10, io.StringIO()), make_run(tmp_path)
    printed(hook, run, range(1, 3))
    (_, _, spike) = printed(hook, run, range(3, 4), spike="transient")
    assert spike == "note after step 3: loss spike, transient"
    lines = printed(hook, run, range(4, 5), loss=math.nan, skipped_steps=2)
    assert lines[-1] == "note after step 4: skipped, loss or gradient norm is not finite; 2 so far"
    assert lines[-2].startswith("step    4/1000  loss nan")


@pytest.mark.parametrize(
    ("iteration", "overrides", "said"),
    [
        (0, (), ""),
        (41, (), "note after step 41: started again, goes on with step 42\n"),
        (
            1000,
            (),
            "note after step 1000: this run is finished, nothing is trained; to train on, raise training.train_iters\n",
        ),
        (
            40,
            ("training.exit_iter=40",),
            "note after step 40: this run is finished, nothing is trained; to train on, raise training.exit_iter\n",
        ),
    ],
)
def test_console_says_where_a_run_is_started_again(
    tmp_path: Path, iteration: int, overrides: tuple[str, ...], said: str
) -> None:
    hook = ConsoleHook(10, io.StringIO())
    hook.on_start(make_run(tmp_path, *overrides, iteration=iteration))
    assert hook.stream.getvalue() == said  # type: ignore[attr-defined]


def test_console_prints_every_interval_the_first_and_the_last(tmp_path: Path) -> None:
    """Counted to where the run stops, not to where its schedule ends."""
    run = make_run(tmp_path, "training.exit_iter=25")
    lines = printed(ConsoleHook(10, io.StringIO()), run, range(1, 26))
    assert [line[: line.index("loss")].split() for line in lines] == [
        ["step", "1/25"],
        ["step", "10/25"],
        ["step", "20/25"],
        ["step", "25/25"],
    ]


def test_console_prints_the_first_step_after_a_resume(tmp_path: Path) -> None:
    run = make_run(tmp_path, iteration=41)
    lines = printed(ConsoleHook(10, io.StringIO()), run, range(42, 51))
    assert [line.split()[1] for line in lines] == ["42/1000", "50/1000"]


def test_console_of_a_ramp_shows_the_batch_and_counts_time_by_samples(tmp_path: Path) -> None:
    """1000 full batches; 512, 1024, 1536, 2048 samples a step over the first 4096."""
    ramp = ("training.rampup_start_batch_size=512", "training.rampup_batch_size_increment=512")
    run = make_run(tmp_path, *ramp, "training.rampup_samples=4096", "training.exit_iter=8")
    run.state.advance(samples=512, tokens=0)
    (line,) = printed(ConsoleHook(1, io.StringIO()), run, range(1, 2), batch_size=512, consumed_samples=512)
    assert line.startswith("step 1/8  batch 512  loss")
    # Steps 2 to 8: 512, 512, 1024, 1024, 1536, 2048, 2048 samples, at 2.5 s for 512.
    assert line.endswith("left 42s")


def test_time_left_ends_where_the_run_stops(tmp_path: Path) -> None:
    run = make_run(tmp_path, "training.exit_iter=30")
    lines = printed(ConsoleHook(10, io.StringIO()), run, range(10, 31))
    assert [line.rpartition("left ")[2] for line in lines] == ["50s", "25s", "0s"]


def test_console_is_silent_on_other_ranks(tmp_path: Path) -> None:
    hook, run = ConsoleHook(1, io.StringIO()), make_run(tmp_path, rank=3)
    hook.on_evaluation(run, evaluation(5))
    assert printed(hook, run, range(1, 10)) == []


def test_console_evaluation_line(tmp_path: Path) -> None:
    hook = ConsoleHook(1, io.StringIO())
    hook.on_evaluation(make_run(tmp_path), evaluation(40))
    assert hook.stream.getvalue() == "eval   40/1000  loss 2.5000  perplexity 12.2  0.75 s\n"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0s"),
        (59.4, "59s"),
        (59.6, "1m 00s"),
        (3599.7, "1h 00m"),
        (3700, "1h 01m"),
        (86400, "1d 00h"),
        (200000, "2d 07h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


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
    hook.on_evaluation(run, dataclasses.replace(evaluation(1), eval_loss=800.0, perplexity=math.inf))
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
    assert {record.perplexity for record in records} == {math.exp(2.0)}


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


def test_perplexity_beyond_all_floats_is_infinite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = evaluations(tmp_path, monkeypatch, range(1, 2), loss=800.0)
    assert {record.perplexity for record in records} == {math.inf}
