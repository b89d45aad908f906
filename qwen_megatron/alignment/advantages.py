"""Advantages of the tokens of a response.

Legend: b rows, s positions; position t belongs to the action that comes after it, token t + 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

from qwen_megatron.parallel.groups import Groups

# Added to the variance of advantages.
EPSILON = 1e-8


def generalized_advantages(
    rewards_bs: torch.Tensor, values_bs: torch.Tensor, mask_bs: torch.Tensor, *, discount: float, decay: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalized advantage estimation over the positions of the mask alone; a response ends after its last.

    A_t = d_t + discount * decay * A_(t+1), d_t = r_t + discount * V_(t+1) - V_t, both 0 after the last position.

    Args:
        rewards_bs: [b, s], of each action.
        values_bs: [b, s], of the text before each action.
        mask_bs: [b, s] bool, one stretch in each row: the actions of its response. What stands elsewhere is not read.
        discount: Of later rewards (gamma).
        decay: Weight of later estimates (lambda): 0 trusts the values, 1 the rewards.
    Returns:
        [b, s] fp32 advantages and returns (advantage + value), 0 elsewhere.
    Source: Schulman et al. 2016 (arXiv 1506.02438), equations 11 and 16.
    """
    rewards = rewards_bs.double().masked_fill(~mask_bs, 0.0)
    values = values_bs.double().masked_fill(~mask_bs, 0.0)
    advantages = torch.zeros_like(rewards)
    later_advantage_b, later_value_b = torch.zeros_like(rewards[:, 0]), torch.zeros_like(rewards[:, 0])
    for position in reversed(range(rewards.size(1))):
        difference_b = rewards[:, position] + discount * later_value_b - values[:, position]
        advantage_b = (difference_b + discount * decay * later_advantage_b) * mask_bs[:, position]
        advantages[:, position] = advantage_b
        later_advantage_b, later_value_b = advantage_b, values[:, position]
    return advantages.float(), (advantages + values).float()


def whitened(values_bs: torch.Tensor, mask_bs: torch.Tensor, groups: Groups) -> torch.Tensor:
    """Shifted and scaled to mean 0 and variance 1 over the masked positions of all replicas; 0 elsewhere.

    Args:
        values_bs: [b, s], this replica's rows.
        mask_bs: [b, s] bool.
        groups: Layout.
    """
    values = values_bs.double().masked_fill(~mask_bs, 0.0)
    count, total = summed([mask_bs.sum(), values.sum()], groups)
    centered = (values - total / count).masked_fill(~mask_bs, 0.0)
    (squares,) = summed([centered.square().sum()], groups)
    return (centered * (squares / count + EPSILON).rsqrt()).float()


def summed(numbers: Sequence[torch.Tensor], groups: Groups) -> torch.Tensor:
    """Each number added up over the replicas: fp64 on the CPU. Collective over them."""
    sums = torch.stack([number.double() for number in numbers]).to(groups.device)
    dist.all_reduce(sums, group=groups.dp)
    return sums.cpu()
