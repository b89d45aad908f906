"""Layouts that are tried, and what comes of them."""

from __future__ import annotations

import dataclasses
import time
import tracemalloc

import pytest

from qwen_megatron.config.load import load_config
from qwen_megatron.config.resolve import resolve
from qwen_megatron.errors import ConfigError
from qwen_megatron.jobs.kinds.table import JOBS, PRETRAIN
from qwen_megatron.jobs.preflight import prepare_config
from qwen_megatron.planning.kernels import kernels_on
from qwen_megatron.planning.machine import load_machine
from qwen_megatron.planning.search import Found, search, usable_bytes
from qwen_megatron.planning.step_time import OURS, step_time

H100 = load_machine("h100-80gb")


def found(recipe: str, gpus: int, *overrides: str, machine: str = "h100-80gb", job: str = "pretrain") -> Found:
    settings = load_config([f"recipe:{recipe}"], overrides)
    fixed = [text.partition("=")[0] for text in overrides]
    return search(settings, gpus, load_machine(machine), JOBS[job], fixed=fixed)


def test_72b_on_1024_gpus_in_seconds() -> None:
    start = time.process_time()
    layouts = found("qwen-72b", 1024).layouts
    assert time.process_time() - start < 10
    # What was found is all that a search keeps; the process's own peak would be that of other tests.
    tracemalloc.start()
    found("qwen-72b", 1024, "parallel.tensor_model_parallel_size=8")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 256 << 20
    assert len(layouts) > 100


@pytest.mark.parametrize("recipe", ["qwen-0.5b", "qwen-72b"])
def test_every_layout_is_one_that_a_run_takes(recipe: str) -> None:
    result = found(recipe, 64)
    assert result.layouts
    for layout in result.layouts[::9]:
        config = prepare_config([f"recipe:{recipe}"], layout.overrides, 64, kind=PRETRAIN)
        assert config.parallel == dataclasses.replace(layout.config.parallel, platform=config.parallel.platform)
        assert config.training == layout.config.training
        assert layout.largest_bytes <= usable_bytes(H100)
    times = [layout.time.total for layout in result.layouts]
    assert times == sorted(times)


def test_what_is_fixed_stays_and_what_a_recipe_says_of_its_layout_does_not() -> None:
    fixed = found("qwen-7b", 16, "parallel.tensor_model_parallel_size=4", "parallel.recompute_granularity=full")
    assert {layout.config.parallel.tensor_model_parallel_size for layout in fixed.layouts} == {4}
    assert {layout.config.parallel.recompute_granularity for layout in fixed.layouts} == {"full"}
    free = {layout.config.parallel.tensor_model_parallel_size for layout in found("qwen-7b", 16).layouts}
    assert free > {1, 4}


def test_where_nothing_fits_the_nearest_is_named() -> None:
    result = found("qwen-72b", 8)
    assert not result.layouts
    assert result.closest is not None
    assert result.closest.largest_bytes > usable_bytes(H100)
    assert result.too_large > 0


def test_settings_that_are_wrong_on_any_layout_are_refused() -> None:
    with pytest.raises(ConfigError, match="lr_warmup_iters"):
        found("qwen-7b", 8, "optimizer.lr_warmup_iters=10000000")


def test_other_jobs_are_planned_too() -> None:
    result = found("sft-7b", 8, job="sft")
    assert result.layouts


def test_more_of_what_costs_time_costs_more() -> None:
    """Each part of a step grows with what it is for."""

    def timed(*overrides: str, machine: object = H100) -> object:
        shape = ("model.preset=qwen-7b", "training.global_batch_size=64", "parallel.overlap_grad_reduce=true")
        return step_time(resolve(load_config(None, [*shape, *overrides])), machine)  # type: ignore[arg-type]

    plain = timed()
    assert plain.tensor == plain.bubble == plain.data == plain.transfers == plain.context == 0
    split = timed("parallel.tensor_model_parallel_size=8")
    assert split.tensor > 0
    # An eighth of the operations, in products that are less than an eighth as large each.
    assert plain.products / 8 < split.products < plain.products / 5
    sequence = timed("parallel.tensor_model_parallel_size=8", "parallel.sequence_parallel=true")
    assert sequence.memory < split.memory
    staged = timed("parallel.pipeline_model_parallel_size=4")
    pieces = timed("parallel.pipeline_model_parallel_size=4", "parallel.virtual_pipeline_model_parallel_size=8")
    assert 0 < pieces.bubble < staged.bubble
    again = timed("parallel.recompute_granularity=full")
    assert plain.products < again.products < 1.34 * plain.products
    slow = dataclasses.replace(H100, network_gb_per_second=0.5)
    assert timed("parallel.world_size=64", machine=slow).data > timed("parallel.world_size=64").data > 0


def test_the_time_of_a_step_is_the_sum_of_its_parts_and_the_limit_the_largest() -> None:
    config = resolve(load_config(None, ["model.preset=qwen-7b", "training.global_batch_size=8"]))
    time_ = step_time(config, H100, OURS)
    parts = dataclasses.asdict(time_)
    assert time_.total == pytest.approx(sum(parts.values()))
    rest = {name: seconds for name, seconds in parts.items() if name not in ("products", "attention")}
    assert time_.limit == max(rest, key=rest.__getitem__)


def test_torch_kernels_are_planned_where_they_are_asked_for() -> None:
    config = resolve(load_config(None, ["model.preset=qwen-7b", "model.implementation=torch"]))
    assert kernels_on(config, H100).name == "torch"
