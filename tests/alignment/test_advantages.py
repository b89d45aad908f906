"""Advantages against sums written out, whatever stands at other positions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qwen_megatron.alignment.advantages import generalized_advantages, whitened
from tests.support.ranks import RankPool
from tests.support.trainables import groups_of

# First and last action of each row: short, whole, one action alone.
STRETCHES = ((2, 6), (0, 11), (5, 5))


def stretches() -> torch.Tensor:
    mask_bs = torch.zeros(len(STRETCHES), 12, dtype=torch.bool)
    for row, (first, last) in enumerate(STRETCHES):
        mask_bs[row, first : last + 1] = True
    return mask_bs


def by_hand(rewards: list[float], values: list[float], discount: float, decay: float) -> list[float]:
    """Every advantage as a sum of its own: sum over k of (discount * decay)^k d_(t + k)."""
    values = [*values, 0.0]
    differences = [r + discount * values[t + 1] - values[t] for t, r in enumerate(rewards)]
    return [
        sum((discount * decay) ** k * difference for k, difference in enumerate(differences[t:]))
        for t in range(len(rewards))
    ]


@pytest.mark.parametrize(("discount", "decay"), [(1.0, 0.95), (0.9, 0.5), (0.99, 1.0), (1.0, 0.0)])
def test_advantages_are_the_sums_of_their_definition(discount: float, decay: float) -> None:
    generator = torch.Generator().manual_seed(0)
    rewards_bs, values_bs = torch.randn(2, 3, 12, generator=generator)
    mask_bs = stretches()
    advantages_bs, returns_bs = generalized_advantages(rewards_bs, values_bs, mask_bs, discount=discount, decay=decay)
    for row, (first, last) in enumerate(STRETCHES):
        part = slice(first, last + 1)
        expected = by_hand(rewards_bs[row, part].tolist(), values_bs[row, part].tolist(), discount, decay)
        np.testing.assert_allclose(advantages_bs[row, part], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(returns_bs[row, part], expected + values_bs[row, part].numpy(), rtol=1e-5, atol=1e-6)
    assert not advantages_bs[~mask_bs].any()
    assert not returns_bs[~mask_bs].any()


@pytest.mark.parametrize("filling", [1e6, -3.0, float("nan"), float("inf")])
def test_what_stands_at_other_positions_changes_nothing(filling: float) -> None:
    generator = torch.Generator().manual_seed(1)
    rewards_bs, values_bs = torch.randn(2, 3, 12, generator=generator)
    mask_bs = stretches()
    expected = generalized_advantages(rewards_bs, values_bs, mask_bs, discount=0.9, decay=0.8)
    filled = (values.masked_fill(~mask_bs, filling) for values in (rewards_bs, values_bs))
    found = generalized_advantages(*filled, mask_bs, discount=0.9, decay=0.8)
    assert all(map(torch.equal, found, expected))
    with groups_of() as groups:
        whole = whitened(expected[0], mask_bs, groups)
        assert torch.equal(whitened(expected[0].masked_fill(~mask_bs, filling), mask_bs, groups), whole)


def whiten_job(rows: list[int]) -> torch.Tensor:
    """Some rows on each replica."""
    values_bs, mask_bs = torch.arange(36.0).view(3, 12).square(), stretches()
    with groups_of() as groups:
        mine = rows[groups.dp.rank() :: groups.dp.size()]
        return whitened(values_bs[mine], mask_bs[mine], groups)


def test_whitening_is_over_all_replicas(ranks: RankPool) -> None:
    (one,) = ranks.run(1, whiten_job, rows=[0, 1, 2])
    first, second = ranks.run(2, whiten_job, rows=[0, 1, 2])
    torch.testing.assert_close(torch.cat([first[:1], second, first[1:]]), one)
    mask_bs = stretches()
    assert one[mask_bs].mean().item() == pytest.approx(0.0, abs=1e-6)
    assert one[mask_bs].var(unbiased=False).item() == pytest.approx(1.0, rel=1e-5)
