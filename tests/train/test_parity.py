"""Layout is not semantics: every layout trains as one process does."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tests.support.ranks import RankPool
from tests.support.training import DEMO, pretrain_on_ranks, rows

TP2 = "parallel.tensor_model_parallel_size=2"
PP2 = "parallel.pipeline_model_parallel_size=2"
SP = "parallel.sequence_parallel=true"

VPP2 = "parallel.virtual_pipeline_model_parallel_size=2"
CP2 = "parallel.context_parallel_size=2"
REDUCE = "parallel.overlap_grad_reduce=true"
GATHER = "parallel.overlap_param_gather=true"
SELECTIVE = "parallel.recompute_granularity=selective"
FULL = "parallel.recompute_granularity=full"

# Compared at every one of the first five steps.
LAYOUTS = {
    "tp2-sp": (2, TP2, SP),
    "cp2": (2, CP2),
    "pp2-vpp2": (2, PP2, VPP2),
    "dp2-overlap": (2, REDUCE, GATHER),
    "recompute-full": (1, FULL),
    "tp2-sp-pp2": (4, TP2, PP2, SP),
    "tp2-sp-cp2": (4, TP2, SP, CP2),
    "cp2-dp2-recompute-selective": (4, CP2, SELECTIVE),
    "tp2-sp-pp2-vpp2-recompute": (4, TP2, SP, PP2, VPP2, FULL),
    "pp2-vpp2-dp2-overlap": (4, PP2, VPP2, REDUCE, GATHER),
    "tp2-sp-pp2-cp2": (8, TP2, SP, PP2, CP2),
    "tp2-sp-pp2-vpp2-dp2-overlap": (8, TP2, SP, PP2, VPP2, REDUCE, GATHER),
}

# Trained on, and compared at steps 1 and 20.
LONG_LAYOUTS = {
    "tp2": (2, TP2),
    "pp2": (2, PP2),
    "dp2": (2,),
    "tp2-pp2": (4, TP2, PP2),
    "tp2-pp2-dp2": (8, TP2, PP2),
    "tp2-sp-pp2-dp2": (8, TP2, PP2, SP),
}


@pytest.fixture(scope="module")
def alone(ranks: RankPool, code_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    directory = tmp_path_factory.mktemp("alone")
    pretrain_on_ranks(ranks, 1, code_corpus, directory, base=DEMO)
    return directory


def assert_close(actual: dict[str, Any], expected: dict[str, Any], *names: str) -> None:
    for name in names:
        assert actual[name] == pytest.approx(expected[name], rel=1e-5), f"{name} at step {expected['step']}"


@pytest.mark.parametrize("layout", LONG_LAYOUTS)
def test_layout_trains_as_one_process(
    layout: str, ranks: RankPool, code_corpus: Path, alone: Path, tmp_path: Path
) -> None:
    world_size, *overrides = LONG_LAYOUTS[layout]
    steps = pretrain_on_ranks(ranks, world_size, code_corpus, tmp_path, *overrides, base=DEMO)
    expected = {row["step"]: row for row in rows(alone) if "loss" in row}
    assert sorted(steps) == list(range(1, 21))
    for step in (1, 20):
        assert_close(steps[step], expected[step], "loss", "grad_norm")
    evaluations = [row for row in rows(tmp_path) if "eval_loss" in row]
    assert [row["step"] for row in evaluations] == [0, 20]
    for row, other in zip(evaluations, (row for row in rows(alone) if "eval_loss" in row), strict=True):
        assert_close(row, other, "eval_loss")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_starts_as_one_process(
    layout: str, ranks: RankPool, code_corpus: Path, alone: Path, tmp_path: Path
) -> None:
    world_size, *overrides = LAYOUTS[layout]
    steps = pretrain_on_ranks(ranks, world_size, code_corpus, tmp_path, *overrides, "training.exit_iter=5", base=DEMO)
    expected = {row["step"]: row for row in rows(alone) if "loss" in row}
    assert sorted(steps) == [1, 2, 3, 4, 5]
    for step, row in steps.items():
        assert_close(row, expected[step], "loss", "grad_norm")
    before, _ = (row for row in rows(tmp_path) if "eval_loss" in row)
    assert_close(before, next(row for row in rows(alone) if "eval_loss" in row), "eval_loss")


def test_training_learns(alone: Path) -> None:
    evaluations = [row["eval_loss"] for row in rows(alone) if "eval_loss" in row]
    assert evaluations[0] == pytest.approx(math.log(151936), rel=0.01)
    assert evaluations[-1] < 8.5
