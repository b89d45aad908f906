"""What a run tells besides its metrics: profiler traces, its starts, Weights & Biases."""

from __future__ import annotations

import gzip
import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from qwen_megatron.config.logging import LoggingConfig
from qwen_megatron.jobs.history import STARTS
from qwen_megatron.jobs.preflight import check_packages
from qwen_megatron.train.hooks.wandb import WandbHook, run_id
from qwen_megatron.train.step_timers import STEP_PHASES
from tests.support.corpora import write_byte_corpus
from tests.support.ranks import RankPool
from tests.support.training import pretrain_on_ranks
from tests.train.test_hooks import evaluation, make_run, record

PP2 = "parallel.pipeline_model_parallel_size=2"


@pytest.fixture(scope="module")
def directory(ranks: RankPool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two starts on two layouts, profiled."""
    folder = tmp_path_factory.mktemp("reports")
    corpus = write_byte_corpus(folder / "bytes", 12)
    profiled = ("logging.profile_steps='2-3,5'", "logging.profile_ranks=0-1", "data.eval_samples=0")
    pretrain_on_ranks(ranks, 2, corpus, folder / "run", PP2, *profiled, "training.exit_iter=5")
    pretrain_on_ranks(ranks, 1, corpus, folder / "run", "training.exit_iter=6", "data.eval_samples=0")
    return folder / "run"


def names_in(path: Path) -> set[str]:
    """Names of the events of a trace that was written as JSON without NaN and infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    with gzip.open(path, "rt", encoding="utf-8") as stream:
        trace = json.load(stream, parse_constant=refuse)
    return {event["name"] for event in trace["traceEvents"] if event.get("ph") == "X"}


def test_chosen_steps_and_ranks_have_traces(directory: Path) -> None:
    assert sorted(path.name for path in (directory / "profile").iterdir()) == [
        f"steps_{steps}_rank_{rank}.json.gz" for steps in ("2-3", "5-5") for rank in (0, 1)
    ]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_trace_shows_operators_and_phases(directory: Path, rank: int) -> None:
    names = names_in(directory / "profile" / f"steps_2-3_rank_{rank}.json.gz")
    assert {*STEP_PHASES} - {"other"} <= names
    assert {"aten::mm", "gloo:recv" if rank else "gloo:send"} <= names


def test_every_start_has_a_row(directory: Path) -> None:
    first, second = (json.loads(line) for line in (directory / STARTS).read_text().splitlines())
    assert (first["step"], second["step"]) == (0, 5)
    assert (first["world_size"], second["world_size"]) == (2, 1)
    assert first["config"]["parallel"]["pipeline_model_parallel_size"] == 2
    assert second["config"]["parallel"]["pipeline_model_parallel_size"] == 1
    assert first["time"] <= second["time"]
    assert first["host"]
    assert "torch" in first["environment"]["packages"]


# Weights & Biases


class StandIn(ModuleType):
    """Plays the part of the package wandb: remembers what it is told."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.begun: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        self.metrics: list[tuple[str, str | None]] = []
        self.exit_codes: list[int] = []

    def Settings(self, **values: Any) -> dict[str, Any]:
        return values

    def init(self, **arguments: Any) -> StandIn:
        self.begun.append(arguments)
        return self

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.metrics.append((name, step_metric))

    def log(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def finish(self, exit_code: int) -> None:
        self.exit_codes.append(exit_code)


def report(directory: Path, steps: range, *, ends: bool = True, rank: int = 0) -> None:
    hook, run = WandbHook("llm", "offline", {"model": {"num_layers": 4}}), make_run(directory, rank=rank)
    hook.on_start(run)
    for step in steps:
        hook.on_step(run, record(step))
    hook.on_evaluation(run, evaluation(steps[-1]))
    if ends:
        hook.on_end(run)
    hook.close()


def test_every_start_goes_on_in_the_same_wandb_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    report(tmp_path, range(1, 4), ends=False)
    report(tmp_path, range(3, 5))
    report(tmp_path, range(1, 2), rank=1)
    first, second = stand_in.begun
    assert first["id"] == second["id"] == run_id(tmp_path / "wandb.json")
    assert (first["resume"], first["mode"], first["project"]) == ("allow", "offline", "llm")
    assert first["config"] == {"model": {"num_layers": 4}}
    assert [row["step"] for row in stand_in.rows if "train/loss" in row] == [1, 2, 3, 3, 4]
    assert stand_in.rows[0]["seconds/backward"] == 1.25
    assert [row["eval/loss"] for row in stand_in.rows if "eval/loss" in row] == [2.5, 2.5]
    assert ("*", "step") in stand_in.metrics, "a step that comes twice is not thrown away"
    assert stand_in.exit_codes == [1, 0]


def test_the_package_writes_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real package, which the development environment has."""
    assert check_packages(LoggingConfig(wandb_project="llm")) == []
    monkeypatch.setenv("WANDB_SILENT", "true")
    report(tmp_path, range(1, 3))
    (file,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert run_id(tmp_path / "wandb.json") in file.name
    # Another process of the package writes it, on a busy machine a moment later.
    deadline = time.monotonic() + 30
    while b"train/loss" not in file.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert b"train/loss" in file.read_bytes()


def test_a_missing_package_is_told_before_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen_megatron.jobs.preflight.find_spec", lambda name: None)
    (problem,) = check_packages(LoggingConfig(wandb_project="llm"))
    assert problem == (
        "logging.wandb_project=llm: the package wandb is not installed; in the checkout run: pip install -e "
        "'.[wandb]', or leave the key out"
    )
    assert check_packages(LoggingConfig()) == []
