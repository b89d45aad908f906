"""What PPO needs beyond one model, by arithmetic: memory of three more models, and where the work of a step goes.

N parameters of a model. Policy and value model: bf16 weights 2, fp32 gradients 4, masters and moments 12 bytes a
parameter; reference and reward model 2 each: 40 N bytes before anything is split. The second copy of the policy that
generates lies in the memory of the first. The value and the reward model are taken to have the policy's shape under a
scalar head; files would tell.

Work, in forward passes of one model over the tokens of a step, every response at its greatest length: rollout 1,
judging 4 (policy, reference, reward, value), learning 3 for each epoch and trained model, and as much for each token of
pretraining text. Decoding reads all weights for every few tokens, so that a rollout takes a larger share of the time
than of the work; metrics.jsonl has the seconds of the parts.
"""

from __future__ import annotations

from dataclasses import dataclass

from qwen_megatron.config.arithmetic.parameters import parameters_per_stage
from qwen_megatron.config.resolve import ResolvedConfig

# The policy's forward pass, its backward pass twice that.
TRAINING_PASSES = 3


@dataclass(frozen=True, kw_only=True)
class OtherModels:
    """Bytes of the largest rank of a stage, besides the policy's.

    Attributes:
        value: Weights, gradients and optimizer of the value model.
        frozen: Weights of reference and reward model; of the larger one where they share a place.
        cache: Keys and values of the responses that are made at a time.
    """

    value: int
    frozen: int
    cache: int


def other_models(config: ResolvedConfig, stage: int) -> OtherModels:
    """Of a rank of a pipeline stage, the first is 0."""
    is_bf16 = config.training.precision == "bf16"
    of_number = 2 if is_bf16 else 4
    tensor_size = config.parallel.tensor_model_parallel_size
    scalar = parameters_per_stage(
        config.model,
        tensor_size=tensor_size,
        padded_vocab_size=config.padded_vocab_size,
        layers_per_stage=config.layers_per_stage,
        has_scalar_head=True,
    )[stage]
    language = config.num_parameters_per_rank[stage]
    optimizer = -(-(12 if is_bf16 else 8) * scalar // config.data_parallel_size)
    frozen = max(scalar, language) if config.ppo.share_frozen_model else scalar + language
    key_value = 2 * config.model.num_query_groups * config.model.kv_channels // tensor_size
    tokens = config.ppo.rollout_batch_size * config.training.seq_length
    return OtherModels(
        value=(of_number + 4) * scalar + optimizer,
        frozen=of_number * frozen,
        cache=of_number * key_value * tokens * config.layers_per_stage[stage],
    )


def work_shares(config: ResolvedConfig) -> dict[str, float]:
    """Share of a step's work of each part, after the warm-up of the value model; their sum is 1."""
    options = config.ppo
    texts = options.pretraining_ratio if options.pretraining_blend and options.pretraining_coefficient else 0
    passes = {
        "rollout": 1.0,
        "judging": 4.0,
        "learning of the policy": float(TRAINING_PASSES * options.num_epochs),
        "learning of the value model": float(TRAINING_PASSES * options.num_epochs),
        "pretraining text": float(TRAINING_PASSES * options.num_epochs * texts),
    }
    whole = sum(passes.values())
    return {name: count / whole for name, count in passes.items() if count}
