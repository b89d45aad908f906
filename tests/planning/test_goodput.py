"""What failures cost, by the formula and by drawing them."""

from __future__ import annotations

import math

import pytest

from qwen_megatron.planning.goodput import Failures, best_interval, failures_of, goodput, simulated_goodput

LLAMA = failures_of(16_384, save_seconds=30, restart_seconds=600, gpu_hours=16_384 * 54 * 24 / 419)


def test_llama_3_had_one_stop_in_three_hours() -> None:
    assert LLAMA.between_seconds / 3600 == pytest.approx(3, rel=0.05)


@pytest.mark.parametrize("interval", [120.0, 800.0, 5000.0])
def test_the_formula_is_what_drawn_failures_give(interval: float) -> None:
    hours = 400
    saves = round(hours * LLAMA.between_seconds / interval)
    assert simulated_goodput(LLAMA, interval, saves) == pytest.approx(goodput(LLAMA, interval), rel=0.03)


def test_the_best_interval_is_best_and_near_youngs() -> None:
    best = best_interval(LLAMA)
    assert best == pytest.approx(math.sqrt(2 * LLAMA.save_seconds * LLAMA.between_seconds), rel=0.05)
    for other in (0.8 * best, 1.25 * best):
        assert goodput(LLAMA, other) < goodput(LLAMA, best)


def test_a_job_that_fails_all_the_time_does_nothing() -> None:
    hopeless = Failures(between_seconds=1.0, save_seconds=600.0, restart_seconds=600.0)
    assert goodput(hopeless, 60.0) == 0.0
