"""Pairs of a chosen and a rejected dialogue, each found from its number alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from data_tools.chat.chat_corpus import ChatCorpus
from data_tools.chat.rendered import Rendered
from data_tools.corpus.sidecar import PAIRS
from qwen_megatron.data.blended import BlendedSamples, SampleId, divided, evenly_spread
from qwen_megatron.data.chat_blend import checked_document, open_chat_corpora

if TYPE_CHECKING:
    from qwen_megatron.data.batch import Batch

# Chosen, then rejected.
SIDES = 2


class PreferencePairs(BlendedSamples):
    """Training and evaluation pairs of a blend.

    A pair is two rows of a batch, the chosen dialogue first. A pair of which one does not fit into a row is dropped:
    cut, it would lack the answer that was judged. The last pairs of every corpus are held out.

    Args:
        corpora: Open corpora of pairs by prefix.
        weights: Weight of each corpus; None for shares by pairs.
        seq_length: Tokens a row.
        seed: Order of the pairs.
        eval_samples: Pairs held out over the whole blend, by weight, at least one a corpus if any.
        vocab_size: Rows of the model's vocabulary; None: any id will do.
    Raises:
        DataError: if nothing is left of a corpus to train on.
    """

    rows_per_sample = SIDES

    def __init__(
        self,
        corpora: Mapping[str, ChatCorpus],
        weights: Sequence[float] | None,
        *,
        seq_length: int,
        seed: int,
        eval_samples: int,
        vocab_size: int | None = None,
    ):
        self.corpora = list(corpora.values())
        self.vocab_size = vocab_size
        self.usable = [usable_pairs(corpus, seq_length) for corpus in self.corpora]
        counts = {prefix: len(pairs) for prefix, pairs in zip(corpora, self.usable, strict=True)}
        weights = [max(1, count) for count in counts.values()] if weights is None else list(weights)
        train_counts, eval_ids = divided(
            counts,
            weights,
            eval_samples,
            samples=f"pairs that fit into rows of training.seq_length({seq_length})",
            remedy="raise training.seq_length, or add pairs",
        )
        super().__init__(
            corpora, weights, train_counts=train_counts, eval_ids=eval_ids, seq_length=seq_length, seed=seed
        )
        self.notes = [
            f"{prefix}: {train:,} pairs; {count - train:,} held out; {corpus.num_documents // SIDES - count:,} "
            f"dropped, longer than {seq_length} tokens"
            for (prefix, count), corpus, train in zip(counts.items(), self.corpora, train_counts, strict=True)
        ]

    def pair(self, sample: SampleId) -> tuple[Rendered, Rendered]:
        """The chosen and the rejected dialogue.

        Raises:
            DataError: if a file is damaged.
        """
        self.begin_epoch(sample)
        corpus, prefix = self.corpora[sample.corpus], self.prefixes[sample.corpus]
        first = SIDES * int(self.usable[sample.corpus][sample.sample])
        chosen, rejected = (checked_document(corpus, prefix, first + side, self.vocab_size) for side in range(SIDES))
        return chosen, rejected

    def batch(self, ids: Sequence[SampleId | None]) -> Batch:
        """Rows 2k and 2k + 1 are the chosen and the rejected dialogue of the k-th pair; see `Dataset.batch`."""
        from qwen_megatron.data.preference.batch import pair_batch

        ends_of_turn = [None if sample is None else self.corpora[sample.corpus].end_of_turn for sample in ids]
        pairs = [None if sample is None else self.pair(sample) for sample in ids]
        corpora = [-1 if sample is None else sample.corpus for sample in ids]
        return pair_batch(pairs, ids, self.seq_length, ends_of_turn=ends_of_turn, corpora=corpora)

    def batch_without_tokens(self, ids: Sequence[SampleId | None]) -> Batch | None:
        """A stage in the middle needs nothing: rows are one document each, and padding comes after it."""
        from qwen_megatron.data.batch import blank_batch

        return blank_batch(ids, self.seq_length, rows_per_sample=SIDES)


class HeldOutPairs(PreferencePairs):
    """Pairs that are evaluated on and never trained on.

    Args:
        corpora: Open corpora of pairs by prefix.
        seq_length: Tokens a row.
        eval_samples: Most pairs, evenly spread over all of them; 0 for all.
        vocab_size: As for `PreferencePairs`.
    Raises:
        DataError: if a corpus holds no pair that fits.
    """

    def __init__(
        self,
        corpora: Mapping[str, ChatCorpus],
        *,
        seq_length: int,
        eval_samples: int,
        vocab_size: int | None = None,
    ):
        super().__init__(corpora, None, seq_length=seq_length, seed=0, eval_samples=0, vocab_size=vocab_size)
        spread = evenly_spread(self.train_counts, eval_samples)
        self.eval_ids = [SampleId(corpus=corpus, sample=pair, epoch=0) for corpus, pair in spread]


def usable_pairs(corpus: ChatCorpus, seq_length: int) -> npt.NDArray[np.int64]:
    """[n] int64: numbers of the pairs whose dialogues both fit into a row; reads no token."""
    return np.flatnonzero(corpus.lengths.reshape(-1, SIDES).max(axis=1) <= seq_length)


def open_pairs(
    blend: Mapping[str, float] | Sequence[str],
    *,
    seq_length: int,
    seed: int,
    eval_samples: int,
    vocab_size: int | None,
) -> PreferencePairs:
    """Opens the corpora of `data.blend`.

    Raises:
        DataError: if one is missing, damaged, no corpus of pairs, or too small.
    """
    return PreferencePairs(
        open_chat_corpora(map(str, blend), PAIRS, vocab_size),
        list(blend.values()) if isinstance(blend, Mapping) else None,
        seq_length=seq_length,
        seed=seed,
        eval_samples=eval_samples,
        vocab_size=vocab_size,
    )
