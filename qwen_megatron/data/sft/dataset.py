"""Rows of packed dialogues, each found from its number alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from data_tools.chat.chat_corpus import ChatCorpus
from data_tools.chat.rendered import Rendered
from data_tools.corpus.sidecar import DIALOGUES
from qwen_megatron.data.blended import BlendedSamples, SampleId, divided, evenly_spread
from qwen_megatron.data.chat_blend import checked_document, open_chat_corpora
from qwen_megatron.data.sft.rows import Rows, Usable, usable_documents

if TYPE_CHECKING:
    from qwen_megatron.data.batch import Batch


class PackedDialogues(BlendedSamples):
    """Training and evaluation rows of a blend of dialogue corpora.

    The last dialogues of every corpus are held out and packed apart from the others.

    Args:
        corpora: Open corpora of dialogues by prefix.
        weights: Weight of each corpus; None for shares by rows.
        seq_length: Tokens a row.
        seed: Order of the rows.
        eval_samples: Dialogues held out over the whole blend, by weight, at least one a corpus if any.
        vocab_size: Rows of the model's vocabulary; None: any id will do.
    Raises:
        DataError: if nothing is left of a corpus to train on.
    """

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
        self.usable = [usable_documents(corpus, seq_length) for corpus in self.corpora]
        sizes = [max(1, int(usable.lengths.sum())) for usable in self.usable]
        kept, _ = divided(
            {prefix: len(usable.documents) for prefix, usable in zip(corpora, self.usable, strict=True)},
            sizes if weights is None else weights,
            eval_samples,
            samples=f"dialogues that can be learned from in rows of training.seq_length({seq_length})",
            remedy="raise training.seq_length, or add dialogues",
        )
        # Rows to train on, then rows to evaluate on: a sample's number counts through both.
        self.rows = [
            (
                Rows(usable.documents[:count], usable.lengths[:count], seq_length),
                Rows(usable.documents[count:], usable.lengths[count:], seq_length),
            )
            for usable, count in zip(self.usable, kept, strict=True)
        ]
        train_counts = [len(trained) for trained, _ in self.rows]
        super().__init__(
            corpora,
            train_counts if weights is None else weights,
            train_counts=train_counts,
            eval_ids=[
                SampleId(corpus=i, sample=len(trained) + row, epoch=0)
                for i, (trained, held) in enumerate(self.rows)
                for row in range(len(held))
            ],
            seq_length=seq_length,
            seed=seed,
        )
        self.notes = [packing_note(*of) for of in zip(corpora, self.usable, self.rows, kept, strict=True)]

    def documents_of(self, sample: SampleId) -> Sequence[int]:
        """Numbers of the dialogues in a row."""
        trained, held = self.rows[sample.corpus]
        return trained[sample.sample] if sample.sample < len(trained) else held[sample.sample - len(trained)]

    def dialogues(self, sample: SampleId) -> list[Rendered]:
        """The dialogues of a row, those that were too long cut at the end of a turn.

        Raises:
            DataError: if a file is damaged.
        """
        self.begin_epoch(sample)
        corpus, cut = self.corpora[sample.corpus], self.usable[sample.corpus].truncated
        found = []
        for number in self.documents_of(sample):
            document = checked_document(corpus, self.prefixes[sample.corpus], number, self.vocab_size)
            stop = cut.get(number, len(document))
            found.append(Rendered(tokens=document.tokens[:stop], targets=document.targets[:stop]))
        return found

    def batch(self, ids: Sequence[SampleId | None]) -> Batch:
        """Packed rows; see `Dataset.batch`."""
        # Not above: what only names samples starts without torch.
        from qwen_megatron.data.sft.batch import packed_batch

        rows = [[] if sample is None else self.dialogues(sample) for sample in ids]
        return packed_batch(rows, ids, self.seq_length)


class HeldOutDialogues(PackedDialogues):
    """Rows of dialogues that are evaluated on and never trained on.

    Args:
        corpora: Open corpora of dialogues by prefix.
        seq_length: Tokens a row.
        eval_samples: Most dialogues, evenly spread over all of them; 0 for all.
        vocab_size: As for `PackedDialogues`.
    Raises:
        DataError: if a corpus holds nothing to evaluate on.
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
        spread = evenly_spread([len(usable.documents) for usable in self.usable], eval_samples)
        for number, usable in enumerate(self.usable):
            places = np.array([place for corpus, place in spread if corpus == number], dtype=np.int64)
            nothing = np.zeros(0, dtype=np.int64)
            held = Rows(usable.documents[places], usable.lengths[places], seq_length)
            self.rows[number] = Rows(nothing, nothing, seq_length), held
        self.eval_ids = [
            SampleId(corpus=i, sample=row, epoch=0) for i, (_, held) in enumerate(self.rows) for row in range(len(held))
        ]


def packing_note(prefix: str, usable: Usable, rows: tuple[Rows, Rows], kept: int) -> str:
    """How a corpus was packed, in one line."""
    trained, _ = rows
    parts = [
        f"{kept:,} dialogues in {len(trained):,} rows, {trained.filled:.1%} filled",
        f"{len(usable.documents) - kept:,} held out",
        f"{len(usable.truncated):,} cut at the end of a turn",
        f"{usable.dropped:,} dropped, nothing to learn of them fits",
    ]
    return f"{prefix}: {'; '.join(parts)}"


def open_dialogues(
    blend: Mapping[str, float] | Sequence[str],
    *,
    seq_length: int,
    seed: int,
    eval_samples: int,
    vocab_size: int | None,
) -> PackedDialogues:
    """Opens and packs the corpora of `data.blend`.

    Raises:
        DataError: if one is missing, damaged, no corpus of dialogues, or too small.
    """
    return PackedDialogues(
        open_chat_corpora(map(str, blend), DIALOGUES, vocab_size),
        list(blend.values()) if isinstance(blend, Mapping) else None,
        seq_length=seq_length,
        seed=seed,
        eval_samples=eval_samples,
        vocab_size=vocab_size,
    )
