"""How many tokens and epochs of each corpus a run takes: known before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qwen_megatron.data.blended import BlendedSamples
from qwen_megatron.data.pretraining.blending import CYCLE

# Up to here repeated text teaches nearly as much as new text (Muennighoff et al. 2023, arXiv 2305.16264).
MOST_EPOCHS = 4.0
# More corpora than these are not listed one by one.
MOST_LISTED = 20


@dataclass(frozen=True, kw_only=True)
class CorpusPlan:
    """What a run takes of one corpus.

    Attributes:
        prefix: Of the corpus.
        share: Of the run's samples.
        tokens: In the given number of samples.
        epoch_tokens: In one pass over what is trained on of it.
    """

    prefix: str
    share: float
    tokens: int
    epoch_tokens: int

    @property
    def epochs(self) -> float:
        """How often each token is seen."""
        return self.tokens / self.epoch_tokens

    def __str__(self) -> str:
        return f"{self.prefix}: {self.tokens:,} tokens, {self.share:.1%}, {self.epochs:.2f} epochs"


def corpus_plans(dataset: BlendedSamples, samples: int) -> list[CorpusPlan]:
    """What the first `samples` samples of a run take of each corpus, in the blend's order."""
    consumed = dataset.consumed(samples)
    tokens = dataset.rows_per_sample * dataset.seq_length
    return [
        CorpusPlan(
            prefix=prefix,
            share=quota / CYCLE,
            tokens=consumed[prefix] * tokens,
            epoch_tokens=count * tokens,
        )
        for prefix, quota, count in zip(dataset.prefixes, dataset.blend.quotas, dataset.train_counts, strict=True)
    ]


def plan_lines(plans: Sequence[CorpusPlan]) -> list[str]:
    """A line for each corpus, those that give most tokens if there are many."""
    listed = plans if len(plans) <= MOST_LISTED else sorted(plans, key=lambda plan: -plan.tokens)[:MOST_LISTED]
    rest = len(plans) - len(listed)
    return [*map(str, listed), *([f"and {rest} corpora of fewer tokens"] if rest else [])]


def plan_warnings(plans: Sequence[CorpusPlan]) -> list[str]:
    """One for the corpora that are repeated too often."""
    worn = sorted((plan for plan in plans if plan.epochs > MOST_EPOCHS), key=lambda plan: -plan.epochs)
    if not worn:
        return []
    named = ", ".join(f"{plan.prefix} ({plan.epochs:.1f})" for plan in worn[:3])
    others = f" and {len(worn) - 3} more" if len(worn) > 3 else ""
    rule = f"data.blend: more than {MOST_EPOCHS:g} epochs of {named}{others}; repeated text teaches less and less"
    return [f"{rule}: lower its weight, add text, or train on fewer tokens"]
