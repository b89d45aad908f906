"""Reward models, and preference models before them: a scalar head learns which of two dialogues is preferred."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from qwen_megatron.alignment.intervals import wilson_interval
from qwen_megatron.alignment.pairwise_loss import PairwiseLoss
from qwen_megatron.config.resolve import ResolvedConfig
from qwen_megatron.data.blended import BlendedSamples
from qwen_megatron.jobs.dialogues import held_out_pairs, open_preferences
from qwen_megatron.jobs.pretrain import Pretraining, train_one_model
from qwen_megatron.model.head_kinds import SCALAR
from qwen_megatron.parallel.groups import Groups
from qwen_megatron.train.run import Hook, Run
from qwen_megatron.train.step import evaluate
from qwen_megatron.train.trainable import MAIN


class RewardTraining(Pretraining):
    """Steps over a blend of preference pairs.

    Args:
        config: Resolved configuration.
        groups: Layout.
    Raises:
        DataError: if a corpus is missing, damaged, of another kind or too small.
    """

    loss_title = "Loss, nats a pair"

    def __init__(self, config: ResolvedConfig, groups: Groups):
        super().__init__(
            config,
            groups,
            objective=PairwiseLoss(),
            dataset=open_preferences(config),
            held_out=held_out_pairs(config),
        )

    def evaluate(self, run: Run, corpus: str | None = None) -> tuple[float, Mapping[str, float]]:
        """Mean loss a pair; accuracy with its interval over all pairs, and over those of each corpus of several.

        The interval is that of 95 % after Wilson: `accuracy_low`, `accuracy_high`, with `pairs`. Of a corpus they are
        called `accuracy/NAME` and so on.
        """
        loader = self.loader if corpus is None else self.held_out[corpus]
        dataset = loader.dataset
        assert isinstance(dataset, BlendedSamples)
        names = corpus_names(dataset.prefixes)
        loss, means = evaluate(
            run.trainables[MAIN],
            PairwiseLoss(num_corpora=len(names)),
            loader.evaluation(),
            shape=loader.shape,
            num_microbatches=loader.num_evaluation_microbatches,
        )
        count = len(dataset.eval_ids)
        found = accuracy(means["accuracy"] * count, count)
        if len(names) > 1:
            for number, name in enumerate(names):
                right, pairs = means[f"right/{number}"] * count, round(means[f"pairs/{number}"] * count)
                found |= {f"{key}/{name}": value for key, value in accuracy(right, pairs).items()}
        return loss, {**found, "margin": means["margin"]}


def accuracy(right: float, count: int) -> dict[str, float]:
    """A share with its interval and what it was counted in, as Table 4 of the report should have it."""
    low, high = wilson_interval(right, count)
    return {
        "accuracy": right / count if count else 0.0,
        "accuracy_low": low,
        "accuracy_high": high,
        "pairs": float(count),
    }


def corpus_names(prefixes: Sequence[str]) -> list[str]:
    """A short name of each corpus: the last part of its prefix, all of it where two end alike."""
    last = [Path(prefix).name for prefix in prefixes]
    return [name if last.count(name) == 1 else prefix.strip("/") for name, prefix in zip(last, prefixes, strict=True)]


def reward(config: ResolvedConfig, more_hooks: Sequence[Hook] = ()) -> str | None:
    """Runs a configuration on this rank, from the newest checkpoint where there is one; as `pretrain`.

    Raises:
        DataError, CheckpointError, PlatformError, TrainingError: see their messages; nothing is left half-written.
    """
    return train_one_model(config, RewardTraining, head=SCALAR, more_hooks=more_hooks)
