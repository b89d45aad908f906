"""Collectives through copies of the host: every tensor is treated here as one of a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from qwen_megatron.platforms import staged_gloo
from qwen_megatron.platforms.cpu import CpuPlatform
from qwen_megatron.platforms.cuda import TESTING
from tests.support.ranks import RankPool
from tests.support.trainables import groups_of, random_batches, take_step, tiny_trainable

VOCAB = 161
NAME = "gloo_with_copies"
COPIES = {"made": 0}


def counted(tensor: torch.Tensor) -> bool:
    COPIES["made"] += 1
    return True


@contextlib.contextmanager
def staged_ranks(name: str = NAME) -> Iterator[None]:
    """While it is open, ranks of the CPU send through a backend: with copies, or as it takes tensors of the host."""
    staged_gloo.register(NAME, counted)
    staged_gloo.register(TESTING)
    before, CpuPlatform.backend = CpuPlatform.backend, name
    try:
        yield
    finally:
        CpuPlatform.backend = before


def collectives_job(name: str) -> list[str]:
    """Names of the collectives over a backend whose result was wrong."""
    wrong = []

    def check(name: str, found: torch.Tensor, expected: Any) -> None:
        if not torch.equal(found, torch.as_tensor(expected, dtype=found.dtype)):
            wrong.append(f"{name}: {found.tolist()}")

    with staged_ranks(name), groups_of(tensor_size=2) as groups:
        group, rank = groups.tp, groups.tp.rank()
        assert dist.get_backend(group) == name
        mine = torch.tensor([rank + 1.0, 10.0])
        one = mine.clone()
        dist.all_reduce(one, group=group)
        check("all_reduce", one, [3.0, 20.0])
        one = mine.clone()
        dist.all_reduce(one, op=dist.ReduceOp.MAX, group=group)
        check("maximum", one, [2.0, 10.0])
        one = mine.clone()
        dist.broadcast(one, group_src=1, group=group)
        check("broadcast", one, [2.0, 10.0])
        whole = torch.zeros(4)
        dist.all_gather_into_tensor(whole, mine, group=group)
        check("all_gather_into_tensor", whole, [1.0, 10.0, 2.0, 10.0])
        parts = [torch.zeros(2), torch.zeros(2)]
        dist.all_gather(parts, mine, group=group)
        check("all_gather", torch.cat(parts), [1.0, 10.0, 2.0, 10.0])
        part = torch.zeros(1)
        dist.reduce_scatter_tensor(part, mine, group=group)
        check("reduce_scatter_tensor", part, [3.0] if rank == 0 else [20.0])
        # Written where the tensor lies, also into a part of another and across its rows.
        table = torch.zeros(2, 3)
        dist.all_gather_into_tensor(column := torch.zeros(2), torch.tensor([rank + 5.0]), group=group)
        table[:, 1] = column
        dist.all_reduce(table[:, 1], group=group)
        check("a column", table, [[0, 10, 0], [0, 12, 0]])
        dist.gather(mine, parts if rank == 0 else None, group=group, group_dst=0)
        if rank == 0:
            check("gather", torch.cat(parts), [1.0, 10.0, 2.0, 10.0])
        got = torch.zeros(2)
        handles = [dist.isend(mine, group=group, group_dst=1 - rank), dist.irecv(got, group=group, group_src=1 - rank)]
        for handle in handles:
            handle.wait()
        check("send and receive", got, [2.0 - rank, 10.0])
        for device in (None, torch.device("cpu")):
            ones = [torch.zeros(1), torch.zeros(1)]
            with dist.distributed_c10d._coalescing_manager(group, device, async_ops=True) as together:
                for piece in ones:
                    dist.reduce_scatter_tensor(piece, mine, group=group, async_op=True)
            together.wait()
            check("coalesced", torch.cat(ones), [3.0, 3.0] if rank == 0 else [20.0, 20.0])
        peer = dist.get_global_rank(group, 1 - rank)
        got.zero_()
        transfers = [dist.P2POp(dist.isend, mine, peer, group), dist.P2POp(dist.irecv, got, peer, group)]
        for handle in dist.batch_isend_irecv(transfers):
            handle.wait()
        check("several transfers", got, [2.0 - rank, 10.0])
        dist.barrier(group=group)
        told: list[Any] = [None, None]
        dist.all_gather_object(told, {"rank": rank}, group=group)
        if told != [{"rank": 0}, {"rank": 1}]:
            wrong.append(f"objects: {told}")
    return wrong


@pytest.mark.parametrize("name", [NAME, TESTING], ids=["of a GPU", "of the host"])
def test_every_collective_gives_what_it_should(ranks: RankPool, name: str) -> None:
    assert ranks.run(2, collectives_job, name=name) == [[], []]


def steps_job(overrides: list[str], staged: bool) -> tuple[list[tuple[float, float]], int]:
    """Loss and gradient norm of two steps, and the copies that were made for them."""
    COPIES["made"] = 0

    def steps() -> list[tuple[float, float]]:
        with tiny_trainable(*overrides) as trainable:
            batches = random_batches(trainable, VOCAB)
            results = [take_step(trainable, batches, step=number) for number in (1, 2)]
            return [(result.loss, result.grad_norm) for result in results]

    if not staged:
        return steps(), 0
    with staged_ranks():
        return steps(), COPIES["made"]


TWO_STAGES = "parallel.pipeline_model_parallel_size=2"
INTERLEAVED = [TWO_STAGES, "parallel.virtual_pipeline_model_parallel_size=2"]
WHOLE = [
    "parallel.tensor_model_parallel_size=2",
    "parallel.sequence_parallel=true",
    TWO_STAGES,
    "parallel.overlap_grad_reduce=true",
    "parallel.overlap_param_gather=true",
    "training.micro_batch_size=1",
]


@pytest.mark.parametrize(
    ("layout", "world"), [(INTERLEAVED, 2), (WHOLE, 8)], ids=["PP2 VPP2", "TP2SP x PP2 x DP2 overlapped"]
)
def test_layouts_give_the_losses_of_one_process(ranks: RankPool, layout: list[str], world: int) -> None:
    more = ["model.num_layers=4"]
    expected, _ = steps_job(more, staged=False)
    for measured, copies in ranks.run(world, steps_job, overrides=[*more, *layout], staged=True):
        np.testing.assert_allclose(measured, expected, rtol=1e-6)
        assert copies > 0
