"""The dialogues of one corpus that fit into rows, and the rows they are packed into.

A dialogue of n tokens takes n - 1 places of a row: its labels are its tokens from the second on, shifted before
anything is packed, so that no label crosses from one dialogue into the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from data_tools.chat.chat_corpus import ChatCorpus
from data_tools.chat.packing import first_fit_decreasing
from data_tools.chat.rendered import Rendered
from data_tools.chat.truncation import truncate


@dataclass(frozen=True, kw_only=True)
class Usable:
    """The documents of a corpus that can be learned from.

    Attributes:
        documents: [n] int64 numbers in the corpus, rising.
        lengths: [n] int64 tokens of each as it is used.
        truncated: Documents that are used up to the end of a turn, with their lengths.
        dropped: Documents that are not used: nothing to learn is left of them in a row.
    """

    documents: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    truncated: dict[int, int] = field(default_factory=dict)
    dropped: int = 0


def usable_documents(corpus: ChatCorpus, seq_length: int) -> Usable:
    """What of a corpus fits into rows; reads the tokens of those documents alone that are too long.

    Args:
        corpus: Of dialogues.
        seq_length: Tokens a row.
    Raises:
        DataError: if a file is damaged.
    """
    limit = seq_length + 1
    lengths = corpus.lengths.astype(np.int64)
    truncated: dict[int, int] = {}
    for document in np.flatnonzero(lengths > limit).tolist():
        cut = shortened(corpus.document(document), corpus, limit)
        lengths[document] = 0 if cut is None else len(cut)
        if cut is not None:
            truncated[document] = len(cut)
    # A single token has no label.
    documents = np.flatnonzero(lengths > 1)
    return Usable(
        documents=documents,
        lengths=lengths[documents],
        truncated=truncated,
        dropped=len(lengths) - len(documents),
    )


def shortened(document: Rendered, corpus: ChatCorpus, limit: int) -> Rendered | None:
    """A document that is too long, cut at the end of a turn; None if that cannot be."""
    return None if corpus.end_of_turn is None else truncate(document, limit, end_of_turn=corpus.end_of_turn)


class Rows:
    """Documents packed first-fit decreasing: two numbers a document in memory.

    Args:
        documents: [n] int64 numbers in the corpus.
        lengths: [n] int64 tokens of each.
        seq_length: Tokens a row.
    """

    def __init__(self, documents: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], seq_length: int):
        packed = first_fit_decreasing(lengths - 1, seq_length)
        self.bounds = np.cumsum([0, *map(len, packed)])
        order = np.fromiter((place for row in packed for place in row), dtype=np.int64, count=len(documents))
        self.order = documents[order]
        self.num_tokens = int(lengths.sum() - len(lengths))
        self.seq_length = seq_length

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, row: int) -> Sequence[int]:
        """Documents of a row, in their order."""
        documents: list[int] = self.order[self.bounds[row] : self.bounds[row + 1]].tolist()
        return documents

    @property
    def filled(self) -> float:
        """Share of the places that hold a token."""
        return self.num_tokens / max(1, len(self) * self.seq_length)
