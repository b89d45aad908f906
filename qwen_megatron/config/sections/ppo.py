"""Section `ppo`: learning from a reward model. The policy is the run's model; its rate is `optimizer.lr`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from annotated_types import Interval

from data_tools.settings.records import CheckedLater, Count, NonNegative, NonNegativeFloat, Share, record


@record
class PpoConfig:
    """Section `ppo`, read by `qwen-megatron ppo` alone. *Paper* marks what the Qwen report says; the rest is ours."""

    reward_model: str | None = None
    """Checkpoint of a reward model. Needed to train."""
    reference_model: str | None = None
    """Checkpoint or Hugging Face folder of the model that the policy is kept near. Default: `checkpoint.init_from`."""
    value_init: Literal["reward", "policy"] = "reward"
    """Weights that the value model starts with: those of the reward model, or of the policy under a new head."""
    responses_per_query: Annotated[int, Interval(ge=1, le=1024)] = 2
    """Responses drawn to each query. Paper: 2."""
    response_length: Count = 512
    """Tokens of a response at most; a query may have `training.seq_length` less these."""
    temperature: Annotated[float, Interval(gt=0.0, le=100.0)] = 1.0
    """Of the draws."""
    top_p: Annotated[float, Interval(gt=0.0, le=1.0)] = 0.9
    """Share of the probability that responses are drawn from. Paper: 0.9."""
    rollout_batch_size: Annotated[int, Interval(ge=1, le=1 << 20)] = 64
    """Responses that a replica makes at a time."""
    value_warmup_iters: NonNegative = 50
    """First steps, in which the value model alone is trained. Paper: 50."""
    value_lr: Annotated[float, Interval(gt=0.0, le=10.0)] = 5e-6
    """Peak rate of the value model; it follows the schedule of `optimizer.lr`. Paper: 5e-6, and 1e-6 for the policy."""
    value_clip: Annotated[float, Interval(gt=0.0, le=1e9)] = 0.15
    """How far a value may move in a step before its loss stops falling. Paper: 0.15."""
    kl_coefficient: NonNegativeFloat = 0.04
    """Price of a nat of divergence from the reference model. Paper: 0.04."""
    reward_normalization: Literal["mean", "mean_std", "none"] = "mean"
    """What scores are normalised by: the mean of all scores so far, as in the paper, or the standard deviation too."""
    truncation_penalty: NonNegativeFloat = 0.0
    """Taken from the normalised score of a response that did not end within `response_length`."""
    discount: Share = 1.0
    """Of the rewards of later tokens (gamma)."""
    advantage_decay: Share = 0.95
    """Weight of later estimates in an advantage (lambda): 0 trusts the value model, 1 the rewards alone."""
    whiten_advantages: bool = True
    """Shift and scale advantages to mean 0 and variance 1 over all responses of a step."""
    ratio_clip: Annotated[float, Interval(gt=0.0, lt=1.0)] = 0.2
    """How far the probability of a token may move, relative to that of its draw, before its loss stops falling."""
    num_epochs: Annotated[int, Interval(ge=1, le=1000)] = 1
    """Times that the responses of a step are learned from."""
    num_minibatches: Annotated[int, Interval(ge=1, le=1 << 20)] = 4
    """Optimizer steps that the responses of a step are divided into, each time."""
    pretraining_blend: Annotated[tuple[str, ...] | Mapping[str, float], CheckedLater()] = ()
    """Corpora of text, as in `data.blend`, whose next-token loss is mixed into each optimizer step of the policy.
    Default: none."""
    pretraining_coefficient: NonNegativeFloat = 1.0
    """Weight of the mean loss of that text beside the mean loss of the responses. Paper: not said."""
    pretraining_ratio: Annotated[int, Interval(ge=1, le=1024)] = 4
    """Sequences of that text to each response. Paper: significantly more pretraining data than PPO data."""
    share_frozen_model: bool = False
    """Keep reference and reward model in one place of the device and swap their weights from the host's memory."""
    sample_interval: Count = 10
    """Steps between the samples in samples.jsonl of the run's folder."""
    num_samples: NonNegative = 4
    """Responses that are written there each time."""
