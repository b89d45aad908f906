"""What may change between two parts of a run, and what may not unless it is named in `checkpoint.allow_changes`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.settings.words import show
from qwen_megatron.checkpoint.state import CheckpointState, config_sections
from qwen_megatron.config.fill import schedule_lengths
from qwen_megatron.config.resolve import ResolvedConfig
from qwen_megatron.config.sections.model import SHAPE
from qwen_megatron.errors import ChangesRefused

# How long and how fast a run goes, and how often it looks: they change nothing in what a step computes, but for the
# order of sums. Layout, saving and logging are free for the same reason. `train_iters` is free because the schedule of
# the rate has lengths of its own, which are compared: they follow it only where they are not given.
FREE = frozenset(
    {
        "model.implementation",
        "model.loss_implementation",
        "training.deterministic",
        "training.train_iters",
        "training.exit_iter",
        "training.exit_duration_minutes",
        "training.eval_interval",
        "training.micro_batch_size",
        "training.skip_nonfinite_steps",
        "training.spike_sigmas",
        "data.num_workers",
        "data.eval_blend",
        "data.eval_blend_samples",
        # Whose weights they are is compared by content, not by path.
        "ppo.reward_model",
        "ppo.reference_model",
        "ppo.rollout_batch_size",
        "ppo.share_frozen_model",
        "ppo.sample_interval",
        "ppo.num_samples",
    }
)
COMPARED = ("model", "optimizer", "training", "data", "ppo")
# Whether a blend is the same is a matter of its corpora, not of their paths.
BLENDS = frozenset({"data.blend", "ppo.pretraining_blend"})

# Sample numbers mean other tokens with another value of these.
ORDER_OF_SAMPLES = frozenset({"training.seed", "training.seq_length", "data.eval_samples", "data.blend"})

# The shape of the weights.
NEVER = frozenset(f"model.{name}" for name in SHAPE)

LENGTH = "optimizer.lr_decay_iters"

# What samples come from, by name: see `data.protocol.Dataset.sources`.
Sources = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Change:
    """One difference.

    Attributes:
        key: Of the setting.
        then: The checkpoint's value, as a user would type it.
        now: The new value.
        detail: What else there is to say.
    """

    key: str
    then: str
    now: str
    detail: str = ""

    def __str__(self) -> str:
        note = "; samples will be repeated and others left out" if self.key in ORDER_OF_SAMPLES else ""
        return f"{self.key} is {self.now}, the checkpoint was trained with {self.then}{self.detail}{note}"


def check_changes(
    state: CheckpointState, config: ResolvedConfig, sources: Sources | None, folder: Path
) -> list[Change]:
    """Compares a checkpoint with a start that is about to go on from it; neither torch nor the model is needed.

    Args:
        state: Of the checkpoint.
        config: Of the start.
        sources: What its samples come from, after as many as the checkpoint has consumed; None if that is not known,
            then data is not compared.
        folder: The checkpoint, for messages.
    Returns:
        The differences, all of them allowed.
    Raises:
        ChangesRefused: with every difference that is not allowed, and what to give to keep or to allow it.
    """
    changes = changed_settings(state.config, config)
    if sources is not None:
        changes += changed_data(state, config, sources)
    refused = [change for change in changes if change.key not in config.checkpoint.allow_changes or change.key in NEVER]
    if not refused:
        return changes
    longer = LENGTH in {change.key for change in refused} and schedule_follows(state.config, config)
    kept_with_it = following(state.config, config) if longer else set()
    keep = [
        f"'{change.key}={change.then}'"
        for change in refused
        if change.then != change.now and change.key not in kept_with_it
    ]
    lines = [f"{folder}: a run goes on with what it was trained with, unless it is told otherwise:"]
    lines += [f"  {change}" for change in refused]
    if longer:
        lines.append(two_ways_on(state.config, config))
    if keep:
        lines.append(f"To keep the checkpoint's, give {' '.join(keep)}.")
    allowable = [change.key for change in refused if change.key not in NEVER]
    if allowable:
        keys = ",".join([*config.checkpoint.allow_changes, *allowable])
        lines.append(f"To use the new, add 'checkpoint.allow_changes=[{keys}]'.")
    if len(allowable) < len(refused):
        lines.append("Weights of another shape cannot be gone on with.")
    lines.append(
        f"To start anew from the weights alone, give checkpoint.load=none checkpoint.init_from={folder} and another "
        "checkpoint.directory."
    )
    raise ChangesRefused("\n".join(lines))


def changed_settings(saved: dict[str, Any], config: ResolvedConfig) -> list[Change]:
    """Settings that training depends on and that differ; those that the checkpoint does not know are not compared."""
    sections = config_sections(config)
    return [
        Change(key=f"{section}.{name}", then=show(value), now=show(sections[section][name]))
        for section in COMPARED
        for name, value in saved.get(section, {}).items()
        if f"{section}.{name}" not in FREE | BLENDS and sections[section].get(name, value) != value
    ]


def schedule_follows(saved: Mapping[str, Any], config: ResolvedConfig) -> bool:
    """Whether the schedule's length is the run's both times, as it is where it is not given."""
    then = saved.get("optimizer", {}).get("lr_decay_iters")
    ours = config.optimizer.lr_decay_iters == config.training.train_iters
    return ours and isinstance(then, int) and then == saved.get("training", {}).get("train_iters")


def following(saved: Mapping[str, Any], config: ResolvedConfig) -> set[str]:
    """Other lengths of the schedule that follow its whole length, then and now: with that they are kept too."""
    then, now = saved["optimizer"], config.optimizer
    before, after = schedule_lengths(then["lr_decay_iters"]), schedule_lengths(now.lr_decay_iters)
    return {
        f"optimizer.{name}" for name in before if (then.get(name), getattr(now, name)) == (before[name], after[name])
    }


def two_ways_on(saved: Mapping[str, Any], config: ResolvedConfig) -> str:
    """Why another length of the run changes its schedule, and what can be done about it."""
    then, now = saved["training"]["train_iters"], config.training.train_iters
    return (
        f"Where optimizer.lr_decay_iters is not given it follows training.train_iters, {then} then and {now} now. Give "
        f"'optimizer.lr_decay_iters={then}' to keep the schedule, and train beyond it at its lowest rate; or use "
        "the new values, to stretch it over the new length."
    )


def changed_data(state: CheckpointState, config: ResolvedConfig, sources: Sources) -> list[Change]:
    """Other corpora, tokenizers or shares; a corpus that has only moved is the same."""
    then, now = contents(state.data), contents(sources)
    # The cursor tells shares from shares: those of token counts from the same ones written down.
    if shares(state.data) == shares(sources):
        known_then, known_now = ({c.tokenizer for c in side.values() if c.tokenizer} for side in (then, now))
        if not known_then or not known_now or known_then == known_now:
            return []
    gone = [f"{prefix} ({content})" for prefix, content in then.items() if content not in now.values()]
    new = [f"{prefix} ({content})" for prefix, content in now.items() if content not in then.values()]
    return [
        Change(
            key="data.blend",
            then=show(state.config["data"]["blend"]),
            now=show(config_sections(config)["data"]["blend"]),
            detail=(
                f"; then but not now: {', '.join(gone) or 'nothing'}; now but not then: {', '.join(new) or 'nothing'}"
            ),
        )
    ]


def contents(sources: Sources) -> dict[str, Content]:
    """Content of each source, by name."""
    return {name: Content(source["fingerprint"], source.get("tokenizer")) for name, source in sources.items()}


def shares(sources: Sources) -> list[tuple[str, int]]:
    """How many samples each content gave, wherever it lies."""
    return sorted((source["fingerprint"], source["consumed_samples"]) for source in sources.values())


@dataclass(frozen=True)
class Content:
    """What a corpus is, wherever it lies: fingerprints of its tokens and of the tokenizer, None if that is unknown."""

    fingerprint: str
    tokenizer: str | None

    def __str__(self) -> str:
        tokenizer = self.tokenizer[:12] if self.tokenizer else "unknown"
        return f"content {self.fingerprint.rpartition('-')[2][:12]}, tokenizer {tokenizer}"
