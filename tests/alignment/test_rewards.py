"""Scores to rewards: what each row adds up to, the sign of the divergence, running moments."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch

from qwen_megatron.alignment.rewards import RunningMoments, kl_of_tokens, token_rewards
from tests.support.ranks import RankPool
from tests.support.trainables import groups_of


def test_a_row_adds_up_to_its_score_less_its_divergence() -> None:
    """Short rows and those that fill it: no reward lands on padding, none on the query."""
    generator = torch.Generator().manual_seed(0)
    mask_bs = torch.zeros(4, 10, dtype=torch.bool)
    for row, (first, stop) in enumerate([(2, 5), (0, 10), (3, 10), (4, 5)]):
        mask_bs[row, first:stop] = True
    policy_bs, reference_bs = torch.randn(2, 4, 10, generator=generator)
    scores_b = torch.tensor([1.5, -2.0, 0.25, 3.0])
    kl_bs = kl_of_tokens(policy_bs, reference_bs, mask_bs)
    rewards_bs = token_rewards(scores_b, kl_bs, mask_bs, kl_coefficient=0.04)
    expected_b = scores_b - 0.04 * ((policy_bs - reference_bs) * mask_bs).sum(dim=1)
    torch.testing.assert_close((rewards_bs * mask_bs).sum(dim=1), expected_b)
    assert not rewards_bs[~mask_bs].any()


def test_the_divergence_has_its_sign() -> None:
    """Over all texts of two tokens of a vocabulary of 8, weighed by the policy, it is the divergence itself."""
    generator = torch.Generator().manual_seed(3)
    policy_v, reference_v = torch.randn(2, 8, generator=generator).double().log_softmax(dim=1)
    texts = torch.tensor(list(itertools.product(range(8), repeat=2)))
    mask_bs = torch.ones_like(texts, dtype=torch.bool)
    kl_bs = kl_of_tokens(policy_v[texts], reference_v[texts], mask_bs)
    expected = 2 * (policy_v.exp() * (policy_v - reference_v)).sum()
    weights = policy_v[texts].sum(dim=1).exp()
    assert float((weights * kl_bs.sum(dim=1)).sum()) == pytest.approx(float(expected), rel=1e-12)
    # What an absolute value would make of it is another number.
    assert float((weights * kl_bs.abs().sum(dim=1)).sum()) > 1.5 * float(expected)
    # A text that the policy avoids is no cost.
    assert (kl_bs < 0).any()


def moments_job(batches: list[list[float]]) -> dict[str, float]:
    """Each replica takes its share of every batch."""
    with groups_of() as groups:
        moments = RunningMoments()
        for batch in batches:
            moments.update(torch.tensor(batch[groups.dp.rank() :: groups.dp.size()]), groups)
        return moments.state_dict()


def test_moments_of_all_scores_so_far(ranks: RankPool) -> None:
    generator = np.random.default_rng(0)
    batches = [list(map(float, generator.normal(100.0, 3.0, size=8))) for _ in range(5)]
    everything = np.float32(np.concatenate(batches)).astype(np.float64)
    for found in (*ranks.run(1, moments_job, batches=batches), *ranks.run(2, moments_job, batches=batches)):
        assert found["count"] == 40
        assert found["mean"] == pytest.approx(everything.mean(), rel=1e-12)
        assert found["squares"] / 40 == pytest.approx(everything.var(), rel=1e-9)
    moments = RunningMoments()
    moments.load_state_dict(json.loads(json.dumps(found)))
    assert vars(moments) == found
    scores_b = torch.tensor([100.0, 106.0])
    assert moments.normalized(scores_b, "mean").tolist() == pytest.approx((scores_b - moments.mean).tolist())
    deviation = math.sqrt(moments.squares / moments.count)
    assert moments.normalized(scores_b, "mean_std").tolist() == pytest.approx(
        ((scores_b - moments.mean) / deviation).tolist()
    )
    assert moments.normalized(scores_b, "none") is scores_b
