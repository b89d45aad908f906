"""Context parallelism: parts of a sequence come apart and together again, values and gradients."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from qwen_megatron.parallel.context import GatherSequence, slice_numbers, take_slices
from tests.support.ranks import RankPool
from tests.support.trainables import groups_of


def group(rank: int, size: int) -> Any:
    return SimpleNamespace(rank=lambda: rank, size=lambda: size)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_every_slice_is_held_once(size: int) -> None:
    held = [number for rank in range(size) for number in slice_numbers(group(rank, size))]
    assert sorted(held) == list(range(2 * size))


@pytest.mark.parametrize("size", [2, 3, 4])
def test_causal_work_is_balanced(size: int) -> None:
    """Slice c sees c whole slices before it: every rank sees as many."""
    assert len({sum(slice_numbers(group(rank, size))) for rank in range(size)}) == 1


def test_slices_of_a_sequence() -> None:
    whole = torch.arange(24).view(2, 12)
    assert take_slices(whole, 1, group(0, 2)).tolist() == [[0, 1, 2, 9, 10, 11], [12, 13, 14, 21, 22, 23]]
    assert take_slices(whole, 1, group(1, 2)).tolist() == [[3, 4, 5, 6, 7, 8], [15, 16, 17, 18, 19, 20]]
    assert take_slices(whole.T, 0, group(1, 2)).tolist() == whole.T[3:9].tolist()
    assert take_slices(whole, 1, group(0, 1)) is whole


def gather_job(context_size: int, whole: np.ndarray, upstream: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The gathered sequence on this rank, and the gradient of this rank's part."""
    with groups_of(context_size=context_size) as groups:
        part = take_slices(torch.from_numpy(whole), 0, groups.cp).clone().requires_grad_()
        gathered = GatherSequence.apply(part, groups.cp)
        # Every rank weighs the sequence differently; the gradients of all of them come together.
        gathered.backward(torch.from_numpy(upstream) * (1 + groups.cp.rank()))
        return gathered.detach().numpy(), part.grad.numpy()


@pytest.mark.parametrize("size", [2, 4])
def test_gathering_restores_the_order_and_sums_the_gradients(ranks: RankPool, size: int) -> None:
    generator = np.random.default_rng(0)
    whole, upstream = generator.standard_normal((2, 16, 2, 3)).astype(np.float32)
    total = upstream * sum(range(1, size + 1))
    results = ranks.run(size, gather_job, context_size=size, whole=whole, upstream=upstream)
    for rank, (gathered, gradient) in enumerate(results):
        assert np.array_equal(gathered, whole)
        expected = take_slices(torch.from_numpy(total), 0, group(rank, size)).numpy()
        np.testing.assert_allclose(gradient, expected, rtol=1e-6)
