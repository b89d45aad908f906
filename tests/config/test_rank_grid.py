"""The rank grid: a bijection in Megatron's order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_megatron.config.rank_grid import Coordinates, RankGrid

grids = st.builds(
    lambda tensor, context, data, pipeline: RankGrid(tensor=tensor, context=context, data=data, pipeline=pipeline),
    *(st.integers(1, 5) for _ in range(4)),
)


@given(grids)
def test_every_rank_has_one_place_and_every_place_one_rank(grid: RankGrid) -> None:
    places = [grid.coordinates(rank) for rank in range(grid.world_size)]
    assert len(set(places)) == grid.world_size
    assert [grid.rank(place) for place in places] == list(range(grid.world_size))


@given(grids)
def test_tensor_runs_fastest_and_pipeline_slowest(grid: RankGrid) -> None:
    places = [grid.coordinates(rank) for rank in range(grid.world_size)]
    assert places == sorted(places, key=lambda place: (place.pipeline, place.data, place.context, place.tensor))


def test_ranks_and_places_outside_are_refused() -> None:
    grid = RankGrid(tensor=2, context=1, data=3, pipeline=4)
    assert grid.coordinates(7) == Coordinates(tensor=1, context=0, data=0, pipeline=1)
    for rank in (-1, 24):
        with pytest.raises(ValueError, match=f"rank {rank} is outside of 0..23"):
            grid.coordinates(rank)
    with pytest.raises(ValueError, match=r"data position 3 is outside of 0\.\.2"):
        grid.rank(Coordinates(tensor=0, context=0, data=3, pipeline=0))


@pytest.mark.parametrize(
    ("tensor", "context", "data", "pipeline"),
    [(1, 1, 1, 1), (2, 1, 2, 2), (2, 2, 3, 4), (4, 3, 1, 2), (1, 2, 5, 3)],
)
def test_groups_are_those_of_megatron_core(tensor: int, context: int, data: int, pipeline: int) -> None:
    from megatron.core.parallel_state import RankGenerator

    grid = RankGrid(tensor=tensor, context=context, data=data, pipeline=pipeline)
    generator = RankGenerator(tp=tensor, ep=1, dp=data, pp=pipeline, cp=context, order="tp-cp-ep-dp-pp")
    for axis, token in (("tensor", "tp"), ("context", "cp"), ("data", "dp"), ("pipeline", "pp")):
        groups: dict[tuple[int, ...], list[int]] = {}
        for rank in range(grid.world_size):
            place = grid.coordinates(rank)
            others = tuple(getattr(place, name) for name in ("tensor", "context", "data", "pipeline") if name != axis)
            groups.setdefault(others, []).append(rank)
        assert sorted(groups.values()) == sorted(generator.get_ranks(token))
