"""Ranks of one attempt meet in a store that earlier attempts have used."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import torch.distributed as dist

from qwen_megatron.errors import PlatformError
from qwen_megatron.parallel.rendezvous import meet


@pytest.fixture
def server() -> dist.TCPStore:
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def arrive(server: dist.TCPStore, ranks: list[int], world_size: int, seconds: float) -> dict[int, Future[dist.Store]]:
    """Each rank with a connection of its own, as processes have."""

    def one(rank: int) -> dist.Store:
        store = dist.TCPStore("127.0.0.1", server.port, is_master=False, wait_for_workers=False)
        return meet(store, rank, world_size, seconds)

    with ThreadPoolExecutor(len(ranks)) as pool:
        return {rank: pool.submit(one, rank) for rank in ranks}


def test_ranks_meet_in_a_store_that_is_new_at_every_attempt(server: dist.TCPStore) -> None:
    first = {rank: arrived.result() for rank, arrived in arrive(server, [0, 1, 2], 3, 10).items()}
    first[1].set("address", "of a process that is killed")
    # Rank 1 of the second attempt comes after rank 0 has seen the word of the dead one.
    second = {rank: arrived.result() for rank, arrived in arrive(server, [2, 0, 1], 3, 10).items()}
    assert not second[0].check(["address"])
    second[2].set("address", "of its successor")
    assert second[0].get("address") == second[1].get("address") == b"of its successor"


@pytest.mark.parametrize("start", [True, False], ids=["first start", "restart"])
def test_a_rank_that_does_not_come_is_named_on_all_that_have(server: dist.TCPStore, start: bool) -> None:
    if not start:
        arrive(server, [0, 1, 2, 3], 4, 10)
    for rank, arrived in arrive(server, [0, 2], 4, 0.5).items():
        with pytest.raises(PlatformError, match=r"^ranks 1, 3 have not joined within 0.5 s; present: ranks 0 \(.*2 \("):
            arrived.result()
        assert rank in (0, 2)


def test_without_rank_0_the_others_say_so(server: dist.TCPStore) -> None:
    (arrived,) = arrive(server, [1], 2, 0.3).values()
    with pytest.raises(PlatformError, match=r"^rank 1 \(.*\): rank 0 has not joined within 0.3 s or is gone"):
        arrived.result()
