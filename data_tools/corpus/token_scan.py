"""One pass over the tokens of a corpus: checksums, range of the ids, how the documents end."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_tools.errors import DataError
from data_tools.io.checksums import BLOCK_BYTES, SEGMENT_BYTES, StreamChecksums, read_pieces
from data_tools.io.progress import Progress
from data_tools.io.threads import map_in_threads


class TokenScan(NamedTuple):
    """What a pass over .bin found."""

    checksums: StreamChecksums
    unended_documents: int  # documents whose last token is another one than the end-of-document token
    first_unended: int | None  # the first of them


class _Rules(NamedTuple):
    """What is asked of the tokens of ``path``; the arguments of `scan_tokens`."""

    path: Path
    dtype: np.dtype
    document_ends: npt.NDArray[np.int64]
    end_of_document: int
    vocab_size: int | None


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
    workers: int = 1,
) -> TokenScan:
    """Reads a token file once, each segment from front to back.

    Args:
        path: the .bin file; a whole number of tokens.
        dtype: type of its tokens.
        document_ends: [documents] int64 token position after each document, ascending.
        end_of_document: id that should end each document; documents without tokens are not looked at.
        vocab_size: every id must be below it; None: ids are not looked at.
        progress: told the bytes read.
        block_bytes: bytes under each CRC.
        segment_bytes: bytes under each SHA-256; None: all.
        workers: segments read at once.
    Raises:
        DataError: an id is negative or not below ``vocab_size``; names position and document, the first of the file.
            Or the file was cut short meanwhile.
        OSError: the disk fails.
    """
    rules = _Rules(path, dtype, document_ends, end_of_document, vocab_size)
    size = path.stat().st_size
    bounds = [*range(0, size, segment_bytes or max(size, 1)), size]
    # What came to the file since is read with its last segment, for the caller to see.
    stretches = list(zip(bounds[:-1], [*bounds[1:-1], None], strict=True)) or [(0, None)]

    def scanned(stretch: tuple[int, int | None]) -> TokenScan:
        return _scan(rules, *stretch, StreamChecksums(block_bytes, segment_bytes), progress)

    whole: TokenScan | None = None
    for (start, stop), part in zip(stretches, map_in_threads(scanned, stretches, workers), strict=True):
        if part.checksums.size_bytes < (stop or size) - start:
            raise DataError(f"{path}: was cut short while it was read; restore it or make the corpus again")
        whole = part if whole is None else _joined(whole, part)
    assert whole is not None
    return whole


def _joined(whole: TokenScan, part: TokenScan) -> TokenScan:
    whole.checksums.append(part.checksums)
    first = part.first_unended if whole.first_unended is None else whole.first_unended
    return TokenScan(whole.checksums, whole.unended_documents + part.unended_documents, first)


def _scan(rules: _Rules, start: int, stop: int | None, checksums: StreamChecksums, progress: Progress) -> TokenScan:
    """`scan_tokens` for the bytes from ``start`` to ``stop``, or to the end of the file."""
    ends = rules.document_ends
    position = start // rules.dtype.itemsize
    # A document belongs to the piece that holds its last token.
    document = int(np.searchsorted(ends, position, side="right")) if position else 0
    unended, first_unended = 0, None
    for piece in read_pieces(rules.path, start, stop):
        checksums.update(piece)
        tokens = np.frombuffer(piece, dtype=rules.dtype)
        if rules.vocab_size is not None:
            _check_ids(rules, tokens, position, rules.vocab_size)
        last = int(np.searchsorted(ends, position + len(tokens), side="right"))
        piece_ends = ends[document:last]
        wrong = np.diff(piece_ends, prepend=ends[document - 1] if document else 0) > 0
        wrong[wrong] = tokens[piece_ends[wrong] - 1 - position] != rules.end_of_document
        if first_unended is None and wrong.any():
            first_unended = document + int(np.argmax(wrong))
        unended += int(wrong.sum())
        position, document = position + len(tokens), last
        progress.advance(len(piece))
    return TokenScan(checksums, unended, first_unended)


def _check_ids(rules: _Rules, tokens: npt.NDArray[np.integer], position: int, vocab_size: int) -> None:
    """Raises DataError if one of ``tokens``, the first of which is token ``position`` of the file, is no id."""
    if tokens.min() >= 0 and tokens.max() < vocab_size:
        return
    bad = int(np.argmax((tokens < 0) | (tokens >= vocab_size)))
    owner = int(np.searchsorted(rules.document_ends, position + bad, side="right"))
    raise DataError(
        f"{rules.path}: token {position + bad} (document {owner}) is {int(tokens[bad])}, ids must be 0 to "
        f"{vocab_size - 1}; --vocab-size says how many ids the tokenizer has"
    )


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
