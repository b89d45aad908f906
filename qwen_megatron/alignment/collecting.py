"""Experience: responses of the policy, and what four models say of them.

Legend: b rows, s positions; position t belongs to the action that comes after it, token t + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from qwen_megatron.alignment.advantages import generalized_advantages, summed, whitened
from qwen_megatron.alignment.asking import Request, ask, scalars_of
from qwen_megatron.alignment.experience import rows_of, with_extras
from qwen_megatron.alignment.pairwise_loss import rewards_at
from qwen_megatron.alignment.policy_loss import actions_of
from qwen_megatron.alignment.rewards import RunningMoments, kl_of_tokens, token_rewards
from qwen_megatron.alignment.rollout import Query, Rollout
from qwen_megatron.alignment.swapping import SharedPlace
from qwen_megatron.config.sections.ppo import PpoConfig
from qwen_megatron.data.batch import Batch
from qwen_megatron.data.preference.batch import END_INDEX
from qwen_megatron.inference.sampling import Sampling
from qwen_megatron.model.heads import HeadRequest
from qwen_megatron.parallel.groups import Groups
from qwen_megatron.train.trainable import Trainable


@dataclass(frozen=True, kw_only=True)
class Models:
    """The four models of PPO and what draws responses.

    Attributes:
        policy: Trained; a language model.
        value: Trained; a number for each token.
        reference: What the policy is kept near.
        reward: Scores a text at its last token.
        rollout: Draws from the policy.
        place: Where reference and reward model take turns; None if both are there.
    """

    policy: Trainable
    value: Trainable
    reference: Trainable
    reward: Trainable
    rollout: Rollout
    place: SharedPlace | None = None

    def ask_frozen(self, trainable: Trainable, request: Request, rows: Batch, *, micro_batch_size: int) -> torch.Tensor:
        """What the reference or the reward model says; see `asking.ask`."""
        if self.place is not None:
            self.place.bring(trainable)
        return ask(trainable, request, rows, micro_batch_size=micro_batch_size)


def responded(
    models: Models, queries: Sequence[Query], num_responses: int, sampling: Sampling, seq_length: int
) -> Batch:
    """Rows of queries with responses; see `experience.rows_of`."""
    responses = models.rollout.generate(queries, num_responses, sampling)
    return rows_of([query.tokens for query in queries], responses, seq_length)


def judged(models: Models, rows: Batch, micro_batch_size: int, *, with_values: bool = True) -> Batch:
    """The rows with what the models say of them, as extras.

    The policy is asked again, by the pass that it is trained with: what the sampler knows of a draw is of another
    distribution (temperature, top-p) and of another order of sums.

    Args:
        models: Asked one after the other.
        rows: Of this replica.
        micro_batch_size: Divides them.
        with_values: Ask the value model too.
    Returns:
        Extras [b, s] `log_probabilities_bs`, `entropies_bs`, `kl_bs`, `values_bs` where the loss mask is 1, and
        `score_b`, the reward model's scalar at the last token.
    """
    mask_bs = rows.loss_mask_bs > 0

    def with_entropies(batch: Batch) -> HeadRequest:
        return actions_of(batch, with_entropies=True)

    own_bs2 = ask(models.policy, with_entropies, rows, micro_batch_size=micro_batch_size, width=2)
    reference_bs = models.ask_frozen(models.reference, actions_of, rows, micro_batch_size=micro_batch_size)
    scalars_bs = models.ask_frozen(models.reward, scalars_of, rows, micro_batch_size=micro_batch_size)
    found = {
        "log_probabilities_bs": own_bs2[..., 0].contiguous(),
        "entropies_bs": own_bs2[..., 1].contiguous(),
        "kl_bs": kl_of_tokens(own_bs2[..., 0], reference_bs, mask_bs),
        "score_b": rewards_at(scalars_bs, rows.extras[END_INDEX]),
    }
    if with_values:
        found["values_bs"] = ask(models.value, scalars_of, rows, micro_batch_size=micro_batch_size)
    return with_extras(rows, found)


def credited(rows: Batch, moments: RunningMoments, options: PpoConfig, groups: Groups) -> Batch:
    """The rows with what each action was worth: `advantages_bs` and `returns_bs`. Collective over the replicas.

    Args:
        rows: As `judged` gives them.
        moments: Of all scores; takes in these first.
        options: Section `ppo`.
        groups: Layout.
    """
    mask_bs, extras = rows.loss_mask_bs > 0, rows.extras
    moments.update(extras["score_b"], groups)
    scores_b = moments.normalized(extras["score_b"], options.reward_normalization)
    scores_b = scores_b - options.truncation_penalty * ~extras["finished_b"]
    rewards_bs = token_rewards(scores_b, extras["kl_bs"], mask_bs, kl_coefficient=options.kl_coefficient)
    advantages_bs, returns_bs = generalized_advantages(
        rewards_bs, extras["values_bs"], mask_bs, discount=options.discount, decay=options.advantage_decay
    )
    if options.whiten_advantages:
        advantages_bs = whitened(advantages_bs, mask_bs, groups)
    return with_extras(rows, {"advantages_bs": advantages_bs, "returns_bs": returns_bs})


def described(rows: Batch, counted_b: torch.Tensor, groups: Groups) -> dict[str, float]:
    """What the responses are like, over all replicas; collective.

    Args:
        rows: As `judged` gives them.
        counted_b: [b] bool; fillers are left out.
        groups: Layout.
    Returns:
        Means over responses: `reward` (score as the reward model gives it) with its standard error `reward_error`, `kl`
        (nats a response), `response_length` (tokens), `truncated` (share); over tokens `entropy`, nats. And `tokens`:
        all of queries and responses.
    """
    mask_bs = (rows.loss_mask_bs > 0) & counted_b[:, None]
    scores_b = rows.extras["score_b"].double()[counted_b]
    parts = [
        counted_b.sum(),
        mask_bs.sum(),
        scores_b.sum(),
        scores_b.square().sum(),
        rows.extras["kl_bs"].double()[mask_bs].sum(),
        rows.extras["entropies_bs"].double()[mask_bs].sum(),
        (~rows.extras["finished_b"] & counted_b).sum(),
        (rows.extras[END_INDEX][counted_b] + 1).sum(),
    ]
    count, actions, score, squares, kl, entropy, truncated, tokens = summed(parts, groups).tolist()
    variance = max(squares / count - (score / count) ** 2, 0.0)
    return {
        "reward": score / count,
        "reward_error": (variance / max(count - 1.0, 1.0)) ** 0.5,
        "kl": kl / count,
        "entropy": entropy / actions,
        "response_length": actions / count,
        "truncated": truncated / count,
        "tokens": tokens,
    }
