"""Samples of several corpora: which corpus the n-th sample of a run comes from, and which of its samples it is."""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from data_tools.corpus.sidecar import Sidecar
from qwen_megatron.data.pretraining.blending import Blend, largest_remainder
from qwen_megatron.data.pretraining.permutation import KeyedPermutation
from qwen_megatron.data.protocol import Dataset
from qwen_megatron.errors import DataError


@dataclass(frozen=True, kw_only=True)
class SampleId:
    """Where a sample stands.

    Attributes:
        corpus: Number of the corpus in the blend.
        sample: Number of the sample in the corpus.
        epoch: How often the corpus had been used up before.
    """

    corpus: int
    sample: int
    epoch: int

    def __str__(self) -> str:
        return f"{self.corpus}:{self.sample}:{self.epoch}"


class OpenCorpus(Protocol):
    """What a blend asks of a corpus of any kind.

    Attributes:
        sidecar: Of the corpus.
        fingerprint: Identity of the content.
    """

    @property
    def sidecar(self) -> Sidecar:
        """Of the corpus."""
        ...

    @property
    def fingerprint(self) -> str:
        """Identity of the content."""
        ...

    def verify_again(self) -> None:
        """See `data_tools.corpus.reader.Corpus`."""

    def check_unchanged(self) -> None:
        """See `data_tools.corpus.reader.Corpus`."""


class BlendedSamples(Dataset):
    """The order of the samples of a blend; what a sample is, a subclass says.

    Args:
        corpora: Open corpora by prefix.
        weights: Weight of each corpus, any scale.
        train_counts: Samples of each corpus that are trained on, at least 1.
        eval_ids: Held-out samples.
        seq_length: Tokens a row.
        seed: Order of the samples.
    Attributes:
        notes: What is worth knowing of how samples are made of the corpora, a line each.
    """

    def __init__(
        self,
        corpora: Mapping[str, OpenCorpus],
        weights: Sequence[float],
        *,
        train_counts: Sequence[int],
        eval_ids: Sequence[SampleId],
        seq_length: int,
        seed: int,
    ):
        self.prefixes = list(corpora)
        self.opened: list[OpenCorpus] = list(corpora.values())
        self.blend = Blend(weights)
        self.train_counts = list(train_counts)
        self.eval_ids = list(eval_ids)
        self.seq_length = seq_length
        self.seed = seed
        self.notes: Sequence[str] = ()
        # The latest epoch that a sample was read of, by corpus.
        self.epochs = [0] * len(self.opened)

    def train_id(self, number: int) -> SampleId:
        """The `number`-th training sample of the run, counted over all corpora and epochs."""
        corpus, drawn = self.blend.locate(number)
        epoch, position = divmod(drawn, self.train_counts[corpus])
        return SampleId(corpus=corpus, sample=self.permutation(corpus, epoch)(position), epoch=epoch)

    @functools.lru_cache(maxsize=4096)  # noqa: B019 - a dataset lives as long as its run
    def permutation(self, corpus: int, epoch: int) -> KeyedPermutation:
        """Order of a corpus in an epoch; keyed by its content, not by its place in the blend."""
        return KeyedPermutation(self.train_counts[corpus], self.seed, self.opened[corpus].fingerprint, epoch)

    def begin_epoch(self, sample: SampleId) -> None:
        """Before a sample is read: a block that was good an epoch ago need not be so today."""
        if sample.epoch > self.epochs[sample.corpus]:
            self.epochs[sample.corpus] = sample.epoch
            self.opened[sample.corpus].verify_again()

    def check_unchanged(self) -> None:
        """Before anything that was learned from the corpora is kept or judged: are their files what they were?

        Raises:
            DataError: naming a file whose size or time is not that of its opening.
        """
        for corpus in self.opened:
            corpus.check_unchanged()

    def consumed(self, samples: int) -> dict[str, int]:
        """The cursor: samples each corpus gave among the first `samples` of the run."""
        return dict(zip(self.prefixes, self.blend.consumed(samples), strict=True))

    def sources(self, consumed_samples: int) -> dict[str, dict[str, Any]]:
        """The corpora, by prefix; see `Dataset.sources`."""
        consumed = self.consumed(consumed_samples)
        return {
            prefix: {
                "fingerprint": corpus.fingerprint,
                "tokenizer": corpus.sidecar.tokenizer,
                "end_of_document": corpus.sidecar.end_of_document,
                "consumed_samples": consumed[prefix],
            }
            for prefix, corpus in zip(self.prefixes, self.opened, strict=True)
        }


def divided(
    counts: Mapping[str, int], weights: Sequence[float], eval_samples: int, *, samples: str, remedy: str
) -> tuple[list[int], list[SampleId]]:
    """Divides corpora into what is trained on and, at the end of each, what is held out.

    Args:
        counts: Samples of each corpus by prefix.
        weights: Weight of each corpus, any scale.
        eval_samples: Samples held out over the whole blend, by weight, at least one a corpus if any.
        samples: What they are, for the message.
        remedy: What there is to do besides holding out fewer, for the message.
    Returns:
        How many samples of each corpus are trained on, and the held-out samples.
    Raises:
        DataError: naming a corpus of which nothing would be left to train on.
    """
    held_out = largest_remainder(weights, max(eval_samples, len(counts))) if eval_samples else [0] * len(counts)
    for (prefix, count), held in zip(counts.items(), held_out, strict=True):
        if count - held < 1:
            raise DataError(
                f"{prefix}: holds {count} {samples}, but {held} are held out for evaluation and at least 1 must be "
                f"left to train on; lower data.eval_samples, {remedy}"
            )
    train_counts = [count - held for count, held in zip(counts.values(), held_out, strict=True)]
    eval_ids = [
        SampleId(corpus=corpus, sample=sample, epoch=0)
        for corpus, (train, count) in enumerate(zip(train_counts, counts.values(), strict=True))
        for sample in range(train, count)
    ]
    return train_counts, eval_ids


def evenly_spread(counts: Sequence[int], wanted: int) -> list[tuple[int, int]]:
    """Samples evenly spread over corpora: corpus and number of each.

    Args:
        counts: Samples of each corpus.
        wanted: Most samples; 0 for all.
    """
    bounds = [0, *itertools.accumulate(counts)]
    count = min(wanted, bounds[-1]) or bounds[-1]
    places = (number * bounds[-1] // count for number in range(count))
    owners = ((bisect.bisect_right(bounds, place) - 1, place) for place in places)
    return [(corpus, place - bounds[corpus]) for corpus, place in owners]
