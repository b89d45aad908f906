"""Documents out of token arrays into the order of a corpus, a buffer at a time."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from data_tools import _native

_BUFFER_TOKENS = 2 * 1024 * 1024


def ordered_pieces(
    tokens: Sequence[npt.NDArray[np.int32]],
    starts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int32],
    order: npt.NDArray[np.int64],
    end_of_document: int,
) -> Iterator[npt.NDArray[np.int32]]:
    """Documents in ``order``, each followed by ``end_of_document``.

    Args:
        tokens: all documents, each in one of the arrays.
        starts: [n] position of each document, counted through all arrays.
        lengths: [n] tokens of each, without an end token.
        order: [m] which documents.
        end_of_document: appended to each.
    Returns:
        arrays that together are the result; each is overwritten by the next.
    """
    ends = np.cumsum(lengths[order].astype(np.int64) + 1)
    buffer = np.empty(min(_BUFFER_TOKENS, int(ends[-1]) if len(ends) else 0), dtype=np.int32)
    position, written = 0, 0
    while position < len(order):
        stop = int(np.searchsorted(ends, written + len(buffer), side="right"))
        if stop == position:
            stop = position + 1
            buffer = np.empty(int(ends[position]) - written, dtype=np.int32)  # A document larger than the buffer.
        size = _native.gather_documents(tokens, starts, lengths, order[position:stop], end_of_document, buffer)
        yield buffer[:size]
        position, written = stop, int(ends[stop - 1])
