"""What a run says on the console."""

from __future__ import annotations

import io
import math
import re
from pathlib import Path
from typing import Any

import pytest

from qwen_megatron.train.hooks.console import MOST_COLUMNS, ConsoleHook, duration
from qwen_megatron.train.run import Run
from tests.support.hooks import evaluation, make_run, record


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
