"""Learning rate at the steps where its shape changes."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from qwen_megatron.config.load import load_config
from qwen_megatron.config.resolve import resolve
from qwen_megatron.config.sections.optimizer import OptimizerConfig
from qwen_megatron.train.schedule import learning_rate


def options(warmup: int = 10, decay: int = 110, *overrides: str) -> OptimizerConfig:
    settings = ("lr=1.0", "min_lr=0.1", f"lr_warmup_iters={warmup}", f"lr_decay_iters={decay}", *overrides)
    given = ["model.preset=tiny", *(f"optimizer.{setting}" for setting in settings)]
    return resolve(load_config(None, given)).optimizer


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (1, 0.1),
        (5, 0.5),
        (10, 1.0),
        (11, 0.1 + 0.45 * (1 + math.cos(math.pi / 100))),
        (35, 0.1 + 0.45 * (1 + math.cos(math.pi / 4))),
        (60, 0.55),
        (109, 0.1 + 0.45 * (1 + math.cos(math.pi * 0.99))),
        (110, 0.1),
        (111, 0.1),
        (10**9, 0.1),
    ],
)
def test_cosine(step: int, rate: float) -> None:
    assert learning_rate(step, options()) == pytest.approx(rate, rel=1e-12)


def test_no_warmup_starts_just_below_the_peak() -> None:
    rate = learning_rate(1, options(warmup=0, decay=100))
    assert rate == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi / 100)), rel=1e-12)


def test_one_step_of_warmup_is_the_peak() -> None:
    assert learning_rate(1, options(warmup=1)) == 1.0


def test_warmup_up_to_the_last_step() -> None:
    rates = [learning_rate(step, options(warmup=9, decay=10)) for step in (8, 9, 10, 11)]
    assert rates == pytest.approx([8 / 9, 1.0, 0.1, 0.1])


def test_rises_then_falls_and_never_leaves_its_bounds() -> None:
    rates = [learning_rate(step, options()) for step in range(1, 130)]
    assert all(before < after for before, after in pairwise(rates[:10]))
    assert all(before > after for before, after in pairwise(rates[9:110]))
    assert max(rates) == 1.0
    assert min(rates[10:]) == pytest.approx(0.1)
    # A step never moves the rate by more than the warm-up's slope.
    assert max(abs(after - before) for before, after in pairwise(rates)) <= 0.1 + 1e-12


def test_recipe_of_the_report() -> None:
    """Peak 3e-4 down to a tenth of it."""
    recipe = resolve(load_config(None, ["model.preset=qwen-7b"])).optimizer
    assert learning_rate(1, recipe) == pytest.approx(1.5e-7)
    assert learning_rate(2000, recipe) == 3e-4
    assert learning_rate(572_205, recipe) == pytest.approx(3e-5)
