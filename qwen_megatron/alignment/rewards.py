"""From the score of a response to a reward for each of its tokens.

Legend: b rows, s positions; position t belongs to the action that comes after it, token t + 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from qwen_megatron.alignment.advantages import summed
from qwen_megatron.parallel.groups import Groups


@dataclass(kw_only=True)
class RunningMoments:
    """Mean and variance of all scores so far.

    Attributes:
        count: Scores.
        mean: Of them.
        squares: Sum of their squared distances from the mean.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def update(self, scores_b: torch.Tensor, groups: Groups) -> None:
        """Takes in the scores of all replicas; collective. Source: Chan et al. 1979, the pairwise algorithm."""
        scores = scores_b.double()
        ones = torch.ones_like(scores)
        count, total, squares = summed([ones.sum(), scores.sum(), scores.square().sum()], groups).tolist()
        mean, both = total / count, self.count + count
        distance = mean - self.mean
        self.squares += max(squares - count * mean * mean, 0.0) + distance * distance * self.count * count / both
        self.mean += distance * count / both
        self.count = int(both)

    def normalized(self, scores_b: torch.Tensor, how: str) -> torch.Tensor:
        """Scores less the mean (`mean`), divided by the standard deviation too (`mean_std`), or as they are (`none`).

        The paper says that rewards are normalised by a running mean; whether they are divided too it does not say.
        """
        if how == "none":
            return scores_b
        centered_b = scores_b - self.mean
        deviation = math.sqrt(self.squares / self.count) if self.count else 0.0
        return centered_b / deviation if how == "mean_std" and deviation else centered_b

    def state_dict(self) -> dict[str, Any]:
        """As JSON values; floats come back bit by bit."""
        return dict(vars(self))

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` gave."""
        self.count, self.mean, self.squares = int(saved["count"]), float(saved["mean"]), float(saved["squares"])


def kl_of_tokens(policy_bs: torch.Tensor, reference_bs: torch.Tensor, mask_bs: torch.Tensor) -> torch.Tensor:
    """log policy - log reference of each action: an unbiased estimate of the divergence with its sign; 0 elsewhere.

    The absolute value, which others take, is no divergence: it punishes what the policy does less often, too.
    Source: Stiennon et al. 2020 (arXiv 2009.01325), section 3.4.

    Args:
        policy_bs, reference_bs: [b, s] log-probabilities of the actions.
        mask_bs: [b, s] bool.
    """
    return (policy_bs - reference_bs).masked_fill(~mask_bs, 0.0)


def token_rewards(
    scores_b: torch.Tensor, kl_bs: torch.Tensor, mask_bs: torch.Tensor, *, kl_coefficient: float
) -> torch.Tensor:
    """-coefficient x divergence for each action, and the score for the last one of its row.

    Args:
        scores_b: [b], of whole responses.
        kl_bs: [b, s], as `kl_of_tokens` gives it.
        mask_bs: [b, s] bool, at least one position in each row.
    Returns:
        [b, s] fp32, 0 where the mask is not; a row's sum is its score - coefficient x its divergence.
    """
    rewards_bs = -kl_coefficient * kl_bs.float().masked_fill(~mask_bs, 0.0)
    positions_s = torch.arange(mask_bs.size(1), device=mask_bs.device)
    last_b = torch.where(mask_bs, positions_s, -1).amax(dim=1)
    return rewards_bs + torch.where(positions_s == last_b[:, None], scores_b.float()[:, None], 0.0)
