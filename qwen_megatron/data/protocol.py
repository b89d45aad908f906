"""What training asks of any data: rows by number, and a cursor that is a count."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwen_megatron.data.batch import Batch


@dataclass(frozen=True, kw_only=True)
class BatchShape:
    """What pipeline stages must know of a micro-batch before it comes.

    Attributes:
        micro_batch_size: Rows.
        seq_length: Tokens a row, over all context-parallel ranks.
    """

    micro_batch_size: int
    seq_length: int


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a pipeline stage looks at of a micro-batch, besides the documents.

    Attributes:
        tokens: Tokens and positions, as the first stage.
        targets: Labels, loss mask and extra fields, as the last.
    """

    tokens: bool = True
    targets: bool = True

    @property
    def nothing(self) -> bool:
        """Whether it is a stage in the middle."""
        return not (self.tokens or self.targets)


class Dataset(abc.ABC):
    """Samples by their numbers: number -> id -> row of a batch.

    The n-th sample of a run is a function of n alone, so that any layout reads the same samples and the cursor of a run
    is the number of samples consumed.

    Attributes:
        seq_length: Tokens a row.
        rows_per_sample: Rows that a sample makes in a batch, next to each other.
        eval_ids: Ids of the held-out samples, in their order.
    """

    seq_length: int
    rows_per_sample: int = 1
    eval_ids: Sequence[Any]

    @abc.abstractmethod
    def train_id(self, number: int) -> Any:
        """Id of the `number`-th training sample of the run, counted over all sources and epochs.

        An id is hashable, and its `str` says where the sample comes from.
        """

    @abc.abstractmethod
    def batch(self, ids: Sequence[Any | None]) -> Batch:
        """A micro-batch of the samples; None makes a filler row, which counts for nothing.

        Raises:
            DataError: if a file is damaged.
        """

    def batch_without_tokens(self, ids: Sequence[Any | None]) -> Batch | None:
        """A micro-batch for a pipeline stage that sees neither tokens nor labels; nothing is read for it.

        Returns:
            A batch of the right shapes with zeros in place of what is read; None, the default, if such a stage needs
            the numbers of documents. It may not depend on the samples which.
        """
        return None

    @abc.abstractmethod
    def sources(self, consumed_samples: int) -> dict[str, dict[str, Any]]:
        """What the samples come from, for checkpoints: by name, JSON values.

        Args:
            consumed_samples: The cursor.
        Returns:
            Of each source `fingerprint` of its content, `tokenizer` (None where it is not known), `end_of_document`
            (the id that ends documents, where there is one) and `consumed_samples`: how many of the run's samples it
            gave.
        """

    def check_unchanged(self) -> None:  # noqa: B027 - not every source is a file
        """Are the files that samples come from what they were when they were opened?

        Raises:
            DataError: naming the one that is not.
        """

    def shape(self, micro_batch_size: int) -> BatchShape:
        """Of its micro-batches."""
        return BatchShape(micro_batch_size=micro_batch_size * self.rows_per_sample, seq_length=self.seq_length)
