"""The loss of reward models against its formula, and the interval of a share against its definition."""

from __future__ import annotations

import math

import pytest
import torch

from data_tools.chat.rendered import rendered
from qwen_megatron.alignment.intervals import Z_95, wilson_interval
from qwen_megatron.alignment.pairwise_loss import PairwiseLoss
from qwen_megatron.data.preference.batch import pair_batch


def test_loss_accuracy_and_margin_are_those_of_the_formula() -> None:
    one, two = rendered([1, 2, 3], [False, True, True]), rendered([1, 2, 3, 4], [False, False, True, True])
    batch = pair_batch(
        [(one, two), None, (two, one), (one, one)], [0, None, 1, 2], 6, ends_of_turn=[None] * 4, corpora=[0, -1, 1, 1]
    )
    scalars = torch.randn(8, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64, requires_grad=True)
    objective = PairwiseLoss(num_corpora=2)
    sums = objective.measure(scalars, batch)
    margins = [(scalars[0, 2] - scalars[1, 3]).item(), (scalars[4, 3] - scalars[5, 2]).item()]
    margins.append((scalars[6, 2] - scalars[7, 2]).item())
    assert sums.count == 3
    assert sums.total.item() == pytest.approx(sum(-math.log(1 / (1 + math.exp(-m))) for m in margins), rel=1e-12)
    right = [float(m > 0) for m in margins]
    values = {name: value.item() for name, value in sums.metrics.items()}
    assert tuple(values) == objective.metric_names
    assert values["accuracy"] == sum(right)
    assert values["margin"] == pytest.approx(sum(margins))
    assert (values["right/0"], values["pairs/0"]) == (right[0], 1)
    assert (values["right/1"], values["pairs/1"]) == (right[1] + right[2], 2)
    sums.total.backward()
    read = scalars.grad.nonzero().tolist()
    assert read == [[0, 2], [1, 3], [4, 3], [5, 2], [6, 2], [7, 2]], "nothing else is read, padding least of all"


def test_equal_rewards_are_half_right() -> None:
    one = rendered([1, 2, 3], [False, True, True])
    batch = pair_batch([(one, one)] * 2, [0, 1], 4, ends_of_turn=[None] * 2, corpora=[0, 0])
    sums = PairwiseLoss().measure(torch.zeros(4, 4), batch)
    assert sums.metrics["accuracy"] == 1.0
    assert sums.total.item() == pytest.approx(2 * math.log(2))


@pytest.mark.parametrize(("right", "count"), [(8, 10), (0, 7), (7, 7), (1153, 2312), (10.5, 21)])
def test_the_interval_holds_the_shares_that_the_count_does_not_refute(right: float, count: int) -> None:
    """A share p is in it if the count lies within z standard deviations of p: its bounds are where it lies at z."""
    low, high = wilson_interval(right, count)
    assert 0 <= low <= right / count <= high <= 1
    for bound in (low, high):
        if 0 < bound < 1:
            deviation = math.sqrt(bound * (1 - bound) / count)
            assert abs(right / count - bound) == pytest.approx(Z_95 * deviation, rel=1e-9)
    assert wilson_interval(0, 0) == (0.0, 1.0)
