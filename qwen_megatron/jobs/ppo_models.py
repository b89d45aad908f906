"""The four models of PPO: two that are trained, two that are asked."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

from qwen_megatron.alignment.collecting import Models
from qwen_megatron.alignment.rollout import PolicyRollout
from qwen_megatron.alignment.swapping import SharedPlace
from qwen_megatron.config.resolve import ResolvedConfig
from qwen_megatron.errors import ConfigError
from qwen_megatron.jobs.frozen import architecture_of, content_of, frozen_model
from qwen_megatron.jobs.resume import start_from_weights
from qwen_megatron.jobs.session import Session
from qwen_megatron.model.head_kinds import LANGUAGE_MODEL, SCALAR
from qwen_megatron.train.names import VALUE
from qwen_megatron.train.optimizer import allocate_moments
from qwen_megatron.train.trainable import Trainable, build_trainable


def build_models(config: ResolvedConfig, given: Session, *, num_tokens: int) -> Models:
    """All four, on one layout. The frozen ones are filled; policy and value hold first weights, for `resume.restore`.

    Args:
        config: Resolved configuration.
        given: Of the job.
        num_tokens: Ids from here on are never drawn.
    Raises:
        CheckpointError: if a source is not whole, or has another head or shape.
    """
    reference, reward = frozen_sources(config)
    frozen = functools.partial(frozen_model, config, given.groups, given.platform, timers=given.timers)
    policy, value = build_trained(config, given)
    asked = {
        "reference": frozen(reference, name="reference", head=LANGUAGE_MODEL),
        "reward": frozen(reward, name="reward", head=SCALAR),
    }
    return Models(
        policy=policy,
        value=value,
        **asked,
        place=SharedPlace(list(asked.values())) if config.ppo.share_frozen_model else None,
        rollout=PolicyRollout(policy, config, num_tokens=num_tokens, max_rows=config.ppo.rollout_batch_size),
    )


def build_trained(config: ResolvedConfig, given: Session) -> tuple[Trainable, Trainable]:
    """Policy and value model, with their optimizers' state: the policy's would first be there after the warm-up."""
    _, reward = frozen_sources(config)
    options, rates = config.ppo, config.optimizer
    shape = architecture_of(reward, config) if options.value_init == "reward" else config.model
    min_lr = rates.min_lr * options.value_lr / rates.lr
    build = functools.partial(build_trainable, config, given.groups, given.platform, timers=given.timers)
    policy = build()
    value = build(
        name=VALUE,
        head=SCALAR,
        model=shape,
        optimizer=dataclasses.replace(rates, lr=options.value_lr, min_lr=min_lr),
    )
    for trainable in (policy, value):
        allocate_moments(trainable.trained)
    return policy, value


def start_value(config: ResolvedConfig, value: Trainable) -> None:
    """Fills the value model of a new run from the reward model, or from the policy's first weights; collective."""
    reference, reward = frozen_sources(config)
    source = reward if config.ppo.value_init == "reward" else reference
    start_from_weights(source, value, allow_nonfinite=config.checkpoint.allow_nonfinite)


def frozen_sources(config: ResolvedConfig) -> tuple[Path, Path]:
    """Where the reference model and the reward model come from.

    Raises:
        ConfigError: if it is not said.
    """
    reference, reward = config.ppo.reference_model or config.checkpoint.init_from, config.ppo.reward_model
    if reference is None or reward is None:
        raise ConfigError("ppo needs ppo.reward_model, and checkpoint.init_from or ppo.reference_model")
    return Path(reference), Path(reward)


def frozen_contents(config: ResolvedConfig) -> dict[str, str]:
    """What the frozen models are, by the setting that names them; collective."""
    reference, reward = frozen_sources(config)
    return {"ppo.reference_model": content_of(reference), "ppo.reward_model": content_of(reward)}
