"""Several models in one process: each on its own groups, none with anything that belongs to the process."""

from __future__ import annotations

from typing import Any

import pytest
from megatron.core import parallel_state

from qwen_megatron.errors import PlatformError
from qwen_megatron.parallel.groups import build_groups
from tests.support.ranks import RankPool
from tests.support.trainables import (
    groups_of,
    held_out_loss,
    parameter_bytes,
    random_batches,
    take_step,
    tiny_built,
    tiny_config,
    tiny_trainable,
)

VOCAB = 161
TP2, PP2, SP = (
    "parallel.tensor_model_parallel_size=2",
    "parallel.pipeline_model_parallel_size=2",
    "parallel.sequence_parallel=true",
)
# Two pieces on each of two stages.
PP2_VPP2 = [PP2, "parallel.virtual_pipeline_model_parallel_size=2", "model.num_layers=4"]


def together_job(overrides: list[str]) -> tuple[list[float], list[float], bool]:
    """Losses of a model trained alone and beside another one; whether its weights end up the same."""
    with tiny_trainable(*overrides) as alone:
        losses = [take_step(alone, random_batches(alone, VOCAB, seed=i), step=i).loss for i in (1, 2, 3)]
        one = tiny_built(tiny_config(*overrides), alone.groups, name="one")
        other = tiny_built(tiny_config(*overrides), alone.groups, name="other", seed=99)
        beside = []
        for i in (1, 2, 3):
            beside.append(take_step(one, random_batches(one, VOCAB, seed=i), step=i).loss)
            # Between two of its steps the other takes one, at another rate.
            take_step(other, random_batches(other, VOCAB, seed=10 + i), step=i, learning_rate=1e-2)
            held_out_loss(other, random_batches(other, VOCAB, seed=20), 2)
        return losses, beside, parameter_bytes(alone) == parameter_bytes(one)


@pytest.mark.parametrize(
    ("world_size", "overrides"),
    [(1, []), (4, [TP2, SP, PP2]), (2, PP2_VPP2), (2, ["parallel.overlap_grad_reduce=true"])],
    ids=["one process", "tp2-sp-pp2", "pp2-vpp2", "dp2-overlap"],
)
def test_a_model_trains_beside_another_as_alone(ranks: RankPool, world_size: int, overrides: list[str]) -> None:
    for losses, beside, same in ranks.run(world_size, together_job, overrides=overrides):
        assert [loss.hex() for loss in beside] == [loss.hex() for loss in losses]
        assert same


def buckets_job(overrides: list[str]) -> list[int]:
    with tiny_trainable("parallel.overlap_grad_reduce=true", *overrides) as trainable:
        (chunk,) = trainable.model_chunks
        return [len(buffer.buckets) for buffer in chunk.buffers]


def test_gradients_are_reduced_in_buckets_of_the_size_that_is_asked_for(ranks: RankPool) -> None:
    whole, *_ = ranks.run(2, buckets_job, overrides=[])
    cut, *_ = ranks.run(2, buckets_job, overrides=["parallel.gradient_bucket_size=2000"])
    assert whole == [1]
    assert cut[0] > 3


# What Megatron-Core 0.16 still asks its module for while a step runs: its row-parallel linear looks up a group that it
# does nothing with, behind a question whether there are any.
STILL_LOOKED_UP = {"is_initialized", "get_tensor_model_parallel_group"}


def lookups_job(overrides: list[str]) -> tuple[set[str], bool]:
    """Names of Megatron-Core's global groups and ranks that a step asks for; whether other answers change anything."""
    with tiny_trainable(*overrides) as trainable:
        asked: set[str] = set()
        other = tiny_built(tiny_config(*overrides), trainable.groups)
        expected = take_step(other, random_batches(other, VOCAB))
        names = [name for name in vars(parallel_state) if name.startswith(("get_", "is_"))]
        originals = {name: getattr(parallel_state, name) for name in names}

        def watched(name: str) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                asked.add(name)
                # With a group that nothing can be sent through.
                return object() if name.endswith("_group") else originals[name](*args, **kwargs)

            return call

        for name in names:
            setattr(parallel_state, name, watched(name))
        try:
            found = take_step(trainable, random_batches(trainable, VOCAB))
            held_out_loss(trainable, random_batches(trainable, VOCAB), trainable.num_microbatches)
        finally:
            for name, original in originals.items():
                setattr(parallel_state, name, original)
        return asked, (found.loss, found.grad_norm) == (expected.loss, expected.grad_norm)


@pytest.mark.parametrize(
    ("world_size", "overrides"), [(1, []), (4, [TP2, SP, PP2]), (2, PP2_VPP2)], ids=["one", "tp2-sp-pp2", "vpp2"]
)
def test_a_step_goes_through_the_groups_it_was_built_with(
    ranks: RankPool, world_size: int, overrides: list[str]
) -> None:
    for asked, same in ranks.run(world_size, lookups_job, overrides=overrides):
        assert asked <= STILL_LOOKED_UP
        assert same


def test_names_of_models_are_plain() -> None:
    with groups_of() as groups:
        for name in ("", "a.b", "../policy", "1", "policy model"):
            with pytest.raises(ValueError, match="cannot be called"):
                tiny_built(tiny_config(), groups, name=name)


def test_a_second_layout_is_refused_and_the_same_one_is_not(ranks: RankPool) -> None:
    assert ranks.run(2, second_layout_job) == ["refused"] * 2


def second_layout_job() -> str:
    with groups_of(tensor_size=2) as groups:
        again = build_groups(tensor_model_parallel_size=2, device=groups.device, timeout_seconds=60.0)
        assert again.collection.tp is groups.collection.tp
        with pytest.raises(PlatformError, match=r"layout tensor 2 x pipeline 1 .*but tensor 1 x pipeline 2 .*is asked"):
            build_groups(pipeline_model_parallel_size=2, device=groups.device, timeout_seconds=60.0)
        # The refusal has harmed nothing.
        assert groups.tp.size() == 2
        take_step(
            trainable := tiny_built(tiny_config("parallel.tensor_model_parallel_size=2"), groups),
            random_batches(trainable, VOCAB),
        )
    with groups_of(pipeline_size=2) as groups:
        assert groups.pp.size() == 2
    return "refused"
