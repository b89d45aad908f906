"""Random numbers as a function of seed and step."""

from __future__ import annotations

import pytest
import torch
from megatron.core.tensor_parallel import random as megatron_random

from qwen_megatron.parallel.rng import derived_seed, seed_step
from qwen_megatron.platforms import get_platform
from tests.support.engines import groups_of
from tests.support.ranks import RankPool


def test_derived_seeds_never_change() -> None:
    """Golden: another value would be another model from the same seed."""
    assert derived_seed("weight", 1234, "decoder.layers.mlp.linear_fc1.weight", 0, 7) == 335879170667232936
    assert derived_seed("step", 1234, 1, 0, 0) == 4584130704256991191


def test_derived_seeds_differ_and_fit_every_generator() -> None:
    seeds = {derived_seed("weight", seed, name, block) for seed in range(20) for name in "abc" for block in range(20)}
    assert len(seeds) == 20 * 3 * 20
    assert all(0 <= seed < 2**62 for seed in seeds)
    assert derived_seed("a", 12) != derived_seed("a1", 2)
    torch.Generator().manual_seed(max(seeds))


def draws_job(
    tensor_size: int, pipeline_size: int, seed: int, iteration: int, context_size: int = 1
) -> tuple[list[float], list[float]]:
    """What a rank draws in replicated regions, and in those that tensor parallelism splits."""
    platform = get_platform("cpu")
    with groups_of(tensor_size, pipeline_size, context_size) as groups:
        torch.manual_seed(groups.rank)
        seed_step(platform, groups, seed, iteration)
        replicated = torch.rand(4).tolist()
        with megatron_random.get_cuda_rng_tracker().fork():
            split = torch.rand(4).tolist()
        return replicated, split


def test_replicated_regions_agree_and_split_ones_differ(ranks: RankPool) -> None:
    results = ranks.run(8, draws_job, tensor_size=2, pipeline_size=2, seed=5, iteration=3)
    for first in range(0, 8, 2):
        # Tensor-parallel ranks stand next to each other.
        assert results[first][0] == results[first + 1][0]
        assert results[first][1] != results[first + 1][1]
    replicated = {tuple(result[0]) for result in results}
    split = {tuple(result[1]) for result in results}
    assert (len(replicated), len(split)) == (4, 8)


def test_parts_of_a_sequence_draw_differently(ranks: RankPool) -> None:
    """Context-parallel ranks hold other tokens of the same samples."""
    results = ranks.run(4, draws_job, tensor_size=1, pipeline_size=1, context_size=2, seed=5, iteration=3)
    assert len({tuple(replicated) for replicated, _ in results}) == 4


@pytest.mark.parametrize(("seed", "iteration"), [(5, 4), (6, 3)])
def test_draws_belong_to_seed_and_step(ranks: RankPool, seed: int, iteration: int) -> None:
    (first,) = ranks.run(1, draws_job, tensor_size=1, pipeline_size=1, seed=5, iteration=3)
    (again,) = ranks.run(1, draws_job, tensor_size=1, pipeline_size=1, seed=5, iteration=3)
    (other,) = ranks.run(1, draws_job, tensor_size=1, pipeline_size=1, seed=seed, iteration=iteration)
    assert first == again
    assert first[0] != other[0]
    assert first[1] != other[1]
