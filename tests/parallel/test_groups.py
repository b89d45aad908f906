"""Groups: where each rank stands, how long it waits, what it says when the launcher's variables are missing."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from qwen_megatron.errors import PlatformError
from qwen_megatron.inference.loading import single_process
from qwen_megatron.parallel.groups import build_groups, destroy_groups, start_process_group
from qwen_megatron.platforms import get_platform
from tests.support.rank_grid import RankGrid
from tests.support.ranks import RankPool
from tests.support.trainables import groups_of


def place_job(grid: RankGrid) -> dict[str, Any]:
    """What a rank finds out about its place."""
    with groups_of(grid.tensor, grid.pipeline, grid.context) as groups:
        place = {
            name: (getattr(groups, name).rank(), dist.get_process_group_ranks(getattr(groups, name)))
            for name in ("tp", "cp", "pp", "dp", "dp_cp")
        }
        ends = {"first": groups.is_first_stage, "last": groups.is_last_stage, "last_rank": groups.last_stage_rank}
        return {"rank": groups.rank, "world": groups.world_size, **place, **ends}


@pytest.mark.parametrize(
    "grid",
    [RankGrid(tensor=2, context=1, data=2, pipeline=2), RankGrid(tensor=1, context=2, data=2, pipeline=2)],
    ids=["tp2-dp2-pp2", "cp2-dp2-pp2"],
)
def test_ranks_stand_where_the_grid_puts_them(ranks: RankPool, grid: RankGrid) -> None:
    for rank, place in enumerate(ranks.run(8, place_job, grid=grid)):
        expected = grid.coordinates(rank)
        assert (place["rank"], place["world"]) == (rank, 8)
        found = (place["tp"][0], place["cp"][0], place["dp"][0], place["pp"][0])
        assert found == (expected.tensor, expected.context, expected.data, expected.pipeline)
        for name in ("tp", "cp", "pp", "dp", "dp_cp"):
            number, members = place[name]
            assert members[number] == rank
        assert len(place["dp_cp"][1]) == grid.data * grid.context
        assert place["first"] == (expected.pipeline == 0)
        assert place["last"] == (expected.pipeline == 1)
        assert place["last_rank"] == place["pp"][1][-1]


def threads_job() -> tuple[int, set[int]]:
    """Event loops of gloo on this rank, and sums over groups of either kind that share them."""
    with groups_of(tensor_size=2) as groups:
        names = [task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
        sums = set()
        for group in (groups.tp, groups.dp, dist.group.WORLD):
            number = torch.tensor(1)
            dist.all_reduce(number, group=group)
            sums.add(int(number))
        own = dist.new_group(range(4))
        assert type(own._get_backend(torch.device("cpu"))) is dist.ProcessGroupGloo
        return sum(name.startswith("gloo_tcp") for name in names), sums


def test_all_groups_share_one_event_loop(ranks: RankPool) -> None:
    """Each loop wakes a hundred times a second; one of every group of every earlier job slowed all tests threefold."""
    for _ in range(2):
        assert ranks.run(4, threads_job) == [(1, {2, 4})] * 4


def waiting_job(wait_seconds: float) -> float:
    """Rank 0 waits for a rank that does not come; returns after how many seconds it gave up."""
    platform = get_platform("cpu")
    platform.prepare()
    device = start_process_group(platform, wait_seconds)
    groups = build_groups(tensor_model_parallel_size=2, device=device, timeout_seconds=wait_seconds)
    try:
        dist.barrier()
        if groups.rank == 1:
            time.sleep(wait_seconds + 2)
            return 0.0
        started = time.monotonic()
        with pytest.raises(RuntimeError, match=r"(?i)timed out"):
            dist.all_reduce(torch.ones(1), group=groups.tp)
        return time.monotonic() - started
    finally:
        destroy_groups()


def test_a_rank_waits_as_long_as_it_is_told(ranks: RankPool) -> None:
    waited, _ = ranks.run(2, waiting_job, wait_seconds=2.0)
    assert 1.5 < waited < 3.5


@pytest.fixture
def no_job(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_without_a_launcher_there_is_a_job_of_one(no_job: pytest.MonkeyPatch) -> None:
    with single_process("cpu") as groups:
        assert (groups.rank, groups.world_size, groups.device) == (0, 1, torch.device("cpu"))
        assert groups.is_first_stage
        assert groups.is_last_stage
        assert [group.size() for group in (groups.tp, groups.pp, groups.dp)] == [1, 1, 1]
    assert not dist.is_initialized()


def test_groups_are_given_up_after_an_error(no_job: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyError, match="inside"), single_process("cpu"):
        raise KeyError("inside")
    assert not dist.is_initialized()
    with single_process("cpu") as groups:
        assert groups.world_size == 1


def test_half_set_variables_are_named(no_job: pytest.MonkeyPatch) -> None:
    no_job.setenv("WORLD_SIZE", "2")
    no_job.setenv("RANK", "0")
    no_job.setenv("MASTER_PORT", "1")
    with pytest.raises(PlatformError, match=r"WORLD_SIZE is set but LOCAL_RANK, MASTER_ADDR is not.*torchrun"):
        start_process_group(get_platform("cpu"), 1.0)
    assert not dist.is_initialized()


def test_leaving_twice_or_before_joining_is_allowed(no_job: pytest.MonkeyPatch) -> None:
    destroy_groups()
    with single_process("cpu"):
        destroy_groups()
        destroy_groups()
