"""Queries of a blend of prompt corpora, each found from its number alone.

The last queries of every corpus are held out for evaluation and never trained on. Queries that are longer than there is
room for are left out, as if they were not there.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_tools.chat.chat_corpus import ChatCorpus
from data_tools.corpus.sidecar import PROMPTS
from qwen_megatron.data.pretraining.blending import Blend, largest_remainder
from qwen_megatron.data.pretraining.dataset import reserve_files
from qwen_megatron.data.pretraining.permutation import KeyedPermutation
from qwen_megatron.data.protocol import Dataset
from qwen_megatron.errors import DataError

if TYPE_CHECKING:
    from qwen_megatron.data.batch import Batch

# Files of a chat corpus that stay open.
FILES = 2


@dataclass(frozen=True, kw_only=True)
class QueryId:
    """Where a query stands.

    Attributes:
        number: In the run, or among those that are held out; it names the draws of its responses.
        corpus: Number of the corpus in the blend.
        document: Number of the document in the corpus.
        epoch: How often the corpus had been used up before.
    """

    number: int
    corpus: int
    document: int
    epoch: int

    def __str__(self) -> str:
        return f"{self.corpus}:{self.document}:{self.epoch}"


class PromptDataset(Dataset):
    """Queries of a blend.

    Args:
        corpora: Open corpora of prompts by prefix.
        weights: Weight of each corpus; None for shares by number of queries.
        longest: Tokens of a query at most; `seq_length` of the rows.
        seed: Order of the queries.
        eval_samples: Queries held out over the whole blend, by weight, at least one a corpus if any.
        vocab_size: Rows of the model's vocabulary; token ids must be below it.
    Attributes:
        left_out: By prefix, queries that are too long.
        end_of_turn: Id that ends a response.
    Raises:
        DataError: if a corpus is too small to train and hold out, has other tokens than the model or than another one.
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
        self.prefixes, self.corpora = list(corpora), list(corpora.values())
        self.seq_length, self.seed = longest, seed
        self.end_of_turn = common_end(corpora)
        # The latest epoch that a query was read of, by corpus.
        self.epochs = [0] * len(corpora)
        for prefix, corpus in corpora.items():
            if corpus.vocab_size > vocab_size:
                raise DataError(
                    f"{prefix}: has token ids up to {corpus.vocab_size - 1}, but model.vocab_size={vocab_size}; make "
                    "it with the model's tokenizer"
                )
        self.usable = [np.flatnonzero(corpus.lengths <= longest) for corpus in self.corpora]
        counts = [len(usable) for usable in self.usable]
        self.left_out = {
            prefix: corpus.num_documents - count
            for prefix, corpus, count in zip(self.prefixes, self.corpora, counts, strict=True)
        }
        shares = [max(1, count) for count in counts] if weights is None else list(weights)
        self.blend = Blend(shares)
        held_out = largest_remainder(shares, max(eval_samples, len(shares))) if eval_samples else [0] * len(shares)
        self.train_counts = [count - held for count, held in zip(counts, held_out, strict=True)]
        for prefix, count, held in zip(self.prefixes, counts, held_out, strict=True):
            if count - held < 1:
                raise DataError(
                    f"{prefix}: holds {count} queries of at most {longest} tokens ({self.left_out[prefix]} are "
                    "longer), "
                    f"but {held} are held out for evaluation and at least 1 must be left to train on; lower "
                    "data.eval_samples or ppo.response_length, or add queries"
                )
        places = [
            (i, place)
            for i, (train, count) in enumerate(zip(self.train_counts, counts, strict=True))
            for place in range(train, count)
        ]
        self.eval_ids = [
            QueryId(number=number, corpus=i, document=int(self.usable[i][place]), epoch=0)
            for number, (i, place) in enumerate(places)
        ]

    def train_id(self, number: int) -> QueryId:
        """The `number`-th query of the run, counted over all corpora and epochs."""
        corpus, drawn = self.blend.locate(number)
        epoch, position = divmod(drawn, self.train_counts[corpus])
        document = self.usable[corpus][self.permutation(corpus, epoch)(position)]
        return QueryId(number=number, corpus=corpus, document=int(document), epoch=epoch)

    @functools.lru_cache(maxsize=4096)  # noqa: B019 - a dataset lives as long as its run
    def permutation(self, corpus: int, epoch: int) -> KeyedPermutation:
        """Order of a corpus in an epoch; keyed by its content, not by its place in the blend."""
        return KeyedPermutation(self.train_counts[corpus], self.seed, self.corpora[corpus].fingerprint, epoch)

    def tokens(self, query: QueryId) -> np.ndarray:
        """int64, at most `seq_length`.

        Raises:
            DataError: if the file is damaged or the query is empty.
        """
        if query.epoch > self.epochs[query.corpus]:
            # A block that was good an epoch ago need not be so today.
            self.epochs[query.corpus] = query.epoch
            self.corpora[query.corpus].verify_again()
        tokens = self.corpora[query.corpus].document(query.document).tokens
        if not len(tokens):
            raise DataError(f"{self.prefixes[query.corpus]}: query {query.document} has no tokens; make it again")
        return tokens.astype(np.int64)

    def batch(self, ids: Sequence[QueryId | None]) -> Batch:
        """Queries padded on the right, with their `lengths_b` and `numbers_b`; a filler is one token of number -1.

        Nothing of it is learned: the loss mask is 0.
        """
        import torch

        from qwen_megatron.data.batch import Batch

        tokens_bs = torch.zeros(len(ids), self.seq_length, dtype=torch.int64)
        lengths: list[int] = []
        numbers: list[int] = []
        for row, query in enumerate(ids):
            tokens = np.zeros(1, dtype=np.int64) if query is None else self.tokens(query)
            tokens_bs[row, : len(tokens)] = torch.from_numpy(tokens)
            lengths.append(len(tokens))
            numbers.append(-1 if query is None else query.number)
        return Batch(
            tokens_bs=tokens_bs,
            labels_bs=torch.zeros_like(tokens_bs),
            loss_mask_bs=torch.zeros(tokens_bs.shape),
            position_ids_bs=torch.arange(self.seq_length).expand_as(tokens_bs).contiguous(),
            document_ids_bs=None,
            samples=tuple(ids),
            extras={"lengths_b": torch.tensor(lengths), "numbers_b": torch.tensor(numbers)},
        )

    def check_unchanged(self) -> None:
        """See `Dataset.check_unchanged`."""
        for corpus in self.corpora:
            corpus.check_unchanged()

    def sources(self, consumed_samples: int) -> dict[str, dict[str, Any]]:
        """The corpora, by prefix; see `Dataset.sources`."""
        consumed = self.blend.consumed(consumed_samples)
        return {
            prefix: {
                "fingerprint": corpus.fingerprint,
                "tokenizer": corpus.tokenizer,
                "end_of_document": corpus.sidecar.end_of_document,
                "consumed_samples": count,
            }
            for prefix, corpus, count in zip(self.prefixes, self.corpora, consumed, strict=True)
        }


def common_end(corpora: Mapping[str, ChatCorpus]) -> int:
    """The id that ends turns in all corpora.

    Raises:
        DataError: if they differ, or one does not say.
    """
    ends = {prefix: corpus.end_of_turn for prefix, corpus in corpora.items()}
    listed = ", ".join(f"{prefix}: {end}" for prefix, end in ends.items())
    end = next(iter(ends.values()))
    if len(set(ends.values())) > 1 or end is None:
        raise DataError(f"data.blend: turns must end with one known id ({listed}); make the corpora alike")
    return end


def open_prompts(
    blend: Mapping[str, float] | Sequence[str], *, longest: int, seed: int, eval_samples: int, vocab_size: int
) -> PromptDataset:
    """Opens the corpora of `data.blend`; arguments as of `PromptDataset`.

    Raises:
        DataError: if a corpus is missing, damaged, too small or not of prompts.
    """
    reserve_files(FILES * len(blend))
    corpora = {str(prefix): ChatCorpus.open(Path(prefix), kind=PROMPTS) for prefix in blend}
    weights = list(blend.values()) if isinstance(blend, Mapping) else None
    return PromptDataset(corpora, weights, longest=longest, seed=seed, eval_samples=eval_samples, vocab_size=vocab_size)
