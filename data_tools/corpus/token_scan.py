"""One pass over the tokens of a corpus: checksums, range of the ids, how the documents end."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_tools.errors import DataError
from data_tools.io.checksums import BLOCK_BYTES, SEGMENT_BYTES, StreamChecksums, read_pieces
from data_tools.io.progress import Progress


class TokenScan(NamedTuple):
    """What a pass over .bin found."""

    checksums: StreamChecksums
    unended_documents: int  # documents whose last token is another one than the end-of-document token
    first_unended: int | None  # the first of them


def scan_tokens(
    path: Path,
    dtype: np.dtype,
    document_ends: npt.NDArray[np.int64],
    end_of_document: int,
    vocab_size: int | None,
    progress: Progress,
    *,
    block_bytes: int = BLOCK_BYTES,
    segment_bytes: int | None = SEGMENT_BYTES,
) -> TokenScan:
    """Reads a token file from front to back.

    Args:
        path: the .bin file; a whole number of tokens.
        dtype: type of its tokens.
        document_ends: [documents] int64 token position after each document, ascending.
        end_of_document: id that should end each document; documents without tokens are not looked at.
        vocab_size: every id must be below it; None: ids are not looked at.
        progress: told the bytes read.
        block_bytes: bytes under each CRC.
        segment_bytes: bytes under each SHA-256; None: all.
    Raises:
        DataError: an id is negative or not below ``vocab_size``; names position and document.
        OSError: the disk fails.
    """
    checksums = StreamChecksums(block_bytes, segment_bytes)
    is_empty = np.diff(document_ends, prepend=0) == 0
    unended, first_unended, position, document = 0, None, 0, 0
    for piece in read_pieces(path):
        checksums.update(piece)
        tokens = np.frombuffer(piece, dtype=dtype)
        if vocab_size is not None and (tokens.min() < 0 or tokens.max() >= vocab_size):
            bad = int(np.argmax((tokens < 0) | (tokens >= vocab_size)))
            owner = int(np.searchsorted(document_ends, position + bad, side="right"))
            raise DataError(
                f"{path}: token {position + bad} (document {owner}) is {int(tokens[bad])}, ids must be 0 to "
                f"{vocab_size - 1}; --vocab-size says how many ids the tokenizer has"
            )
        # A document belongs to the piece that holds its last token.
        stop = int(np.searchsorted(document_ends, position + len(tokens), side="right"))
        ends = document_ends[document:stop]
        wrong = ~is_empty[document:stop]
        wrong[wrong] = tokens[ends[wrong] - 1 - position] != end_of_document
        if first_unended is None and wrong.any():
            first_unended = document + int(np.argmax(wrong))
        unended += int(wrong.sum())
        position, document = position + len(tokens), stop
        progress.advance(len(piece))
    return TokenScan(checksums, unended, first_unended)


def common_last_tokens(
    path: Path, dtype: np.dtype, document_ends: npt.NDArray[np.int64], num_documents: int = 1000
) -> Counter[int]:
    """Last tokens of up to ``num_documents`` documents spread over the file, with how often each occurs.

    Args:
        path: the .bin file, not empty.
        dtype: type of its tokens.
        document_ends: [documents] int64 token position after each document.
        num_documents: documents to look at.
    """
    ends = document_ends[np.diff(document_ends, prepend=0) > 0]
    sample = np.unique(np.linspace(0, len(ends) - 1, num=min(num_documents, len(ends)), dtype=np.int64))
    tokens = np.memmap(path, dtype=dtype, mode="r")
    return Counter(tokens[ends[sample] - 1].tolist())
