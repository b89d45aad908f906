"""Queries of a blend of prompt corpora, each found from its number alone.

The last queries of every corpus are held out for evaluation and never trained on. Queries that are longer than there is
room for are left out, as if they were not there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from data_tools.chat.chat_corpus import ChatCorpus
from data_tools.corpus.sidecar import PROMPTS
from qwen_megatron.data.blended import BlendedSamples, SampleId, divided
from qwen_megatron.data.chat_blend import checked_document, open_chat_corpora
from qwen_megatron.errors import DataError

if TYPE_CHECKING:
    from qwen_megatron.data.batch import Batch

# Of a row that fills up a batch.
FILLER = -1


@dataclass(frozen=True, kw_only=True)
class QueryId(SampleId):
    """Where a query stands.

    Attributes:
        number: In the run, or among those that are held out; it names the draws of its responses.
    """

    number: int


class Queries(BlendedSamples):
    """Training and evaluation queries of a blend.

    Args:
        corpora: Open corpora of prompts by prefix.
        weights: Weight of each corpus; None for shares by queries.
        longest: Tokens of a query at most; `seq_length` of the rows.
        seed: Order of the queries.
        eval_samples: Queries held out over the whole blend, by weight, at least one a corpus if any.
        vocab_size: Rows of the model's vocabulary; token ids must be below it.
    Attributes:
        end_of_turn: Id that ends a response.
    Raises:
        DataError: if a corpus is too small to train and hold out, or turns do not end alike.
    """

    def __init__(
        self,
        corpora: Mapping[str, ChatCorpus],
        weights: Sequence[float] | None,
        *,
        longest: int,
        seed: int,
        eval_samples: int,
        vocab_size: int,
    ):
        self.corpora = list(corpora.values())
        self.vocab_size = vocab_size
        self.end_of_turn = common_end_of_turn(corpora)
        self.usable = [np.flatnonzero(corpus.lengths <= longest) for corpus in self.corpora]
        counts = {prefix: len(usable) for prefix, usable in zip(corpora, self.usable, strict=True)}
        weights = [max(1, count) for count in counts.values()] if weights is None else list(weights)
        train_counts, held_out = divided(
            counts,
            weights,
            eval_samples,
            samples=f"queries of at most training.seq_length - ppo.response_length = {longest} tokens",
            remedy="raise training.seq_length, or add queries",
        )
        super().__init__(
            corpora,
            weights,
            train_counts=train_counts,
            eval_ids=[QueryId(number=number, **vars(sample)) for number, sample in enumerate(held_out)],
            seq_length=longest,
            seed=seed,
        )
        self.notes = [
            f"{prefix}: {train:,} queries; {count - train:,} held out; {corpus.num_documents - count:,} left out, "
            f"longer than {longest} tokens"
            for (prefix, count), corpus, train in zip(counts.items(), self.corpora, train_counts, strict=True)
        ]

    def train_id(self, number: int) -> QueryId:
        """The `number`-th query of the run, counted over all corpora and epochs."""
        return QueryId(number=number, **vars(super().train_id(number)))

    def tokens(self, query: SampleId) -> np.ndarray:
        """int64, at most `seq_length` and at least one.

        Raises:
            DataError: if the file is damaged or an id is not in the model's vocabulary.
        """
        self.begin_epoch(query)
        document = int(self.usable[query.corpus][query.sample])
        found = checked_document(self.corpora[query.corpus], self.prefixes[query.corpus], document, self.vocab_size)
        return found.tokens.astype(np.int64)

    def batch(self, ids: Sequence[QueryId | None]) -> Batch:
        """Queries padded on the right, with their `lengths_b` and `numbers_b`; a filler is one token of number -1.

        Nothing of it is learned: the loss mask is 0.
        """
        # Not above: what only names samples, such as `trace`, starts without torch.
        import torch

        from qwen_megatron.data.batch import Batch

        tokens_bs = torch.zeros(len(ids), self.seq_length, dtype=torch.int64)
        lengths = []
        for row, query in enumerate(ids):
            tokens = np.zeros(1, dtype=np.int64) if query is None else self.tokens(query)
            tokens_bs[row, : len(tokens)] = torch.from_numpy(tokens)
            lengths.append(len(tokens))
        numbers = [FILLER if query is None else query.number for query in ids]
        return Batch(
            tokens_bs=tokens_bs,
            labels_bs=torch.zeros_like(tokens_bs),
            loss_mask_bs=torch.zeros(tokens_bs.shape),
            position_ids_bs=torch.arange(self.seq_length).expand_as(tokens_bs).contiguous(),
            document_ids_bs=None,
            samples=tuple(ids),
            extras={"lengths_b": torch.tensor(lengths), "numbers_b": torch.tensor(numbers)},
        )


def common_end_of_turn(corpora: Mapping[str, ChatCorpus]) -> int:
    """The id that ends turns in all corpora.

    Raises:
        DataError: if they differ, or one does not say.
    """
    ends = {prefix: corpus.end_of_turn for prefix, corpus in corpora.items()}
    end = next(iter(ends.values()))
    if len(set(ends.values())) > 1 or end is None:
        listed = ", ".join(f"{prefix}: {one}" for prefix, one in ends.items())
        raise DataError(f"data.blend: turns must end with one known id ({listed}); make the corpora alike")
    return end


def open_prompts(
    blend: Mapping[str, float] | Sequence[str], *, longest: int, seed: int, eval_samples: int, vocab_size: int
) -> Queries:
    """Opens the corpora of `data.blend`; arguments as of `Queries`.

    Raises:
        DataError: if a corpus is missing, damaged, too small or not of prompts.
    """
    return Queries(
        open_chat_corpora(blend, PROMPTS, vocab_size),
        list(blend.values()) if isinstance(blend, Mapping) else None,
        longest=longest,
        seed=seed,
        eval_samples=eval_samples,
        vocab_size=vocab_size,
    )
