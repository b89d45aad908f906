"""Documents that lie one after the other in the rows of a micro-batch, as kernels for packed sequences take them.

Legend: t tokens of all rows, s sequence, b micro-batch, d documents of all rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Documents:
    """Where documents begin and end.

    Attributes:
        lengths: Tokens of each document, by row.
        boundaries: int32 [d + 1]: the first token of each document when the rows follow each other, and t.
        longest: Tokens of the longest document.
    """

    lengths: tuple[tuple[int, ...], ...]
    boundaries: torch.Tensor
    longest: int

    @classmethod
    def of(cls, document_ids_bs: torch.Tensor) -> Documents:
        """Reads them from each token's document, int64 [b, s], rising in every row; waits for the device it is on."""
        lengths = tuple(tuple(ids_s.unique_consecutive(return_counts=True)[1].tolist()) for ids_s in document_ids_bs)
        counts = torch.tensor([0, *(length for row in lengths for length in row)])
        return cls(
            lengths=lengths,
            boundaries=counts.cumsum(0, dtype=torch.int32),
            longest=max(max(row, default=0) for row in lengths),
        )

    def moved(self, move: Callable[[torch.Tensor], torch.Tensor]) -> Documents:
        """The same with its tensor where `move` takes it."""
        return Documents(lengths=self.lengths, boundaries=move(self.boundaries), longest=self.longest)


def packed(x_sbnd: torch.Tensor) -> torch.Tensor:
    """[s, b, n, d] to [t, n, d], row after row; a copy where there are several rows."""
    return x_sbnd.transpose(0, 1).flatten(0, 1)


def unpacked(output_t: torch.Tensor, rows: int) -> torch.Tensor:
    """[t, ...] to [s, b, n * d], the inverse for a kernel's result."""
    return output_t.reshape(rows, output_t.size(0) // rows, -1).transpose(0, 1).contiguous()
