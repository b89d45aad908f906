"""Batch size, steps and samples of a ramp, against the definition step by step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_megatron.config.arithmetic.ramp import BatchSizes
from qwen_megatron.config.load import load_config
from qwen_megatron.config.resolve import ResolvedConfig, resolve
from qwen_megatron.errors import ConfigError
from qwen_megatron.train.schedule import learning_rate

SETTINGS = (
    "model.preset=tiny",
    "model.num_layers=8",
    "training.train_iters=100",
    "training.global_batch_size=32",
    "training.rampup_start_batch_size=8",
    "training.rampup_batch_size_increment=4",
    "training.rampup_samples=600",
)


def resolved_config(*overrides: str) -> ResolvedConfig:
    return resolve(load_config(None, [*SETTINGS, *overrides]))


@st.composite
def sizes(draw: st.DrawFn) -> BatchSizes:
    start, increment, rises = (draw(st.integers(1, most)) for most in (20, 7, 9))
    return BatchSizes(
        full=start + rises * increment, start=start, increment=increment, samples=draw(st.integers(1, 500))
    )


@given(sizes=sizes(), consumed=st.integers(0, 100), length=st.integers(0, 1500))
def test_counts_are_those_of_walking_step_by_step(sizes: BatchSizes, consumed: int, length: int) -> None:
    steps, walked, total = 0, consumed, consumed + length
    while walked < total:
        walked += sizes.at(walked)
        steps += 1
    assert sizes.steps_between(consumed, total) == steps
    walked = 0
    for step in range(60):
        assert sizes.samples_after(step) == walked
        walked += sizes.at(walked)


@given(sizes=sizes())
def test_a_ramp_rises_in_equal_parts_from_start_to_full(sizes: BatchSizes) -> None:
    found = [sizes.at(consumed) for consumed in range(sizes.samples + 1)]
    assert (sizes.at(0), found[-1]) == (sizes.start, sizes.full)
    assert found == sorted(found)
    for consumed, size in enumerate(found[:-1]):
        # Megatron-LM: the parts of the ramp that are used up, each worth one increment.
        part = sizes.samples / sizes.rises
        assert size == sizes.start + sizes.increment * int((consumed + 1e-9) / part)


def test_a_long_ramp_is_counted_without_walking() -> None:
    sizes = BatchSizes(full=1 << 20, start=1 << 8, increment=1 << 8, samples=10**12)
    steps = sizes.steps_between(0, 10**13)
    assert sizes.samples_after(steps - 1) < 10**13 <= sizes.samples_after(steps)


def test_the_plan_counts_the_ramps_steps() -> None:
    resolved = resolved_config()
    # 600 samples in 6 parts of 100: 13 steps of 8, 8 of 12, 7 of 16, 5 of 20, 4 of 24, 4 of 28, then 32.
    assert [stretch.steps for stretch in resolved.training.batch_sizes.stretches(0, 3200)] == [13, 8, 7, 5, 4, 4, 81]
    assert resolved.num_steps == 122
    assert resolved.microbatches_of(8) == 8
    assert resolved_config("training.exit_iter=122").training.exit_iter == 122
    with pytest.raises(ConfigError, match=r"at most training.train_iters\(100\) = 122 steps with the ramp; use 122"):
        resolved_config("training.exit_iter=123")


def test_without_a_ramp_every_step_is_full_and_the_rate_keeps_its_bits() -> None:
    resolved = resolve(load_config(None, ["model.preset=qwen-7b", "parallel.world_size=1"]))
    sizes = resolved.training.batch_sizes
    assert (sizes.at(0), sizes.at(10**15)) == (2048, 2048)
    assert resolved.num_steps == resolved.training.train_iters == 572_205
    for step in [*range(1, 3000), 300_000, 572_205]:
        assert sizes.samples_after(step) == 2048 * step
        rate = learning_rate(2048 * step / 2048, resolved.optimizer)
        assert rate.hex() == learning_rate(step, resolved.optimizer).hex()


@pytest.mark.parametrize(
    ("overrides", "problems"),
    [
        (
            ("training.rampup_samples=null", "training.rampup_batch_size_increment=null"),
            [
                (
                    "training.rampup_batch_size_increment=null: is needed for a batch-size ramp, and "
                    "training.rampup_start_batch_size is given; use 1, or leave all three out"
                ),
                (
                    "training.rampup_samples=null: is needed for a batch-size ramp, and "
                    "training.rampup_start_batch_size is given; use 3200, or leave all three out"
                ),
            ],
        ),
        (
            ("training.rampup_start_batch_size=32",),
            [
                (
                    "training.rampup_start_batch_size=32: must be below training.global_batch_size(32); use 31, or "
                    "leave the ramp out"
                )
            ],
        ),
        (
            ("training.micro_batch_size=4", "training.rampup_start_batch_size=10"),
            [
                (
                    "training.rampup_start_batch_size=10: must be a multiple of training.micro_batch_size(4) x "
                    "data_parallel_size(1) = 4; use 8 or 12"
                )
            ],
        ),
        (
            ("training.rampup_batch_size_increment=5",),
            [
                (
                    "training.rampup_batch_size_increment=5: must be a multiple of training.micro_batch_size(1) x "
                    "data_parallel_size(1) = 1 and divide training.global_batch_size - "
                    "training.rampup_start_batch_size = 24; use 4 or 6"
                )
            ],
        ),
        (
            ("training.micro_batch_size=2", "parallel.world_size=4", "training.rampup_batch_size_increment=4"),
            [
                (
                    "training.rampup_batch_size_increment=4: must be a multiple of training.micro_batch_size(2) x "
                    "data_parallel_size(4) = 8 and divide training.global_batch_size - "
                    "training.rampup_start_batch_size = 24; use 8"
                )
            ],
        ),
        (
            (
                "parallel.pipeline_model_parallel_size=4",
                "parallel.virtual_pipeline_model_parallel_size=2",
                "training.rampup_start_batch_size=6",
            ),
            [
                (
                    "training.rampup_start_batch_size=6: must be a multiple of training.micro_batch_size(1) x "
                    "data_parallel_size(1) x parallel.pipeline_model_parallel_size(4) = 4 with "
                    "parallel.virtual_pipeline_model_parallel_size; use 4 or 8"
                )
            ],
        ),
        (
            (
                "training.global_batch_size=1000000",
                "training.rampup_start_batch_size=1",
                "training.rampup_batch_size_increment=1",
            ),
            ["training.rampup_batch_size_increment=1: makes 999999 rises, at most 10000 are counted; use 111"],
        ),
    ],
)
def test_a_bad_ramp_names_key_value_and_nearest_good_value(overrides: tuple[str, ...], problems: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        resolved_config(*overrides)
    assert raised.value.problems == problems


def test_every_suggested_value_is_good() -> None:
    for layout in ((), ("parallel.world_size=4",), ("training.micro_batch_size=4",)):
        for increment in (3, 7, 10, 23, 30):
            try:
                resolved_config(*layout, f"training.rampup_batch_size_increment={increment}")
            except ConfigError as error:
                (problem,) = error.problems
                for value in problem.rpartition("; use ")[2].split(" or "):
                    resolved_config(*layout, f"training.rampup_batch_size_increment={value}")
