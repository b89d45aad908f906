"""Writing a corpus: tokens are spooled in the order of the input, then written in the order of the corpus.

Everything is prepared in a temporary folder next to the corpus and renamed into place, the sidecar last.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from data_tools import _native
from data_tools.atomic_file import sync_directory, sync_file, write_atomically
from data_tools.checksums import StreamChecksums, sha256_of_file
from data_tools.corpus_index import DTYPE_CODES
from data_tools.progress import Progress
from data_tools.sidecar import FileDigest, Sidecar, corpus_path

TOKEN_DTYPE = np.dtype("<i4")
_BUFFER_TOKENS = 2 * 1024 * 1024
_DOCUMENTS_AT_ONCE = 1024 * 1024
_DATA_SUFFIXES = ("bin", "idx", "crc")


@contextmanager
def scratch_folder(prefix: str | Path) -> Iterator[Path]:
    """A folder next to the corpus, removed at the end whatever happens.

    Folders that killed runs on the same prefix left behind are removed first; the caller holds the corpus lock.
    """
    target = Path(prefix)
    pattern = f".{target.name}.scratch-"
    for stale in target.parent.iterdir():
        if stale.name.startswith(pattern):
            shutil.rmtree(stale)
    folder = Path(tempfile.mkdtemp(prefix=pattern, dir=target.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


class Spool:
    """Documents on disk in the order of the input, with 12 bytes of memory for each.

    The token file holds no end-of-document tokens.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream = path.open("wb", buffering=0)
        self._lengths: list[npt.NDArray[np.int32]] = []
        self._keys: list[npt.NDArray[np.uint64]] = []
        self.num_documents = 0
        self.num_tokens = 0

    def add(self, tokens: npt.NDArray[np.int32], lengths: npt.NDArray[np.int32], keys: npt.NDArray[np.uint64]) -> None:
        """Appends documents.

        Args:
            tokens: [sum of lengths] int32, one document after the other.
            lengths: [n] int32 tokens of each document.
            keys: [n] uint64 what the corpus is sorted by.
        """
        remaining = np.ascontiguousarray(tokens, dtype=TOKEN_DTYPE).data.cast("B")
        while remaining:
            remaining = remaining[self._stream.write(remaining) :]
        self._lengths.append(lengths)
        self._keys.append(keys)
        self.num_documents += len(lengths)
        self.num_tokens += len(tokens)

    def __enter__(self) -> "Spool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def lengths(self) -> npt.NDArray[np.int32]:
        """[num_documents] int32 tokens of each document."""
        return np.concatenate([np.empty(0, dtype=np.int32), *self._lengths])

    def keys(self) -> npt.NDArray[np.uint64]:
        """[num_documents] uint64 sort keys."""
        return np.concatenate([np.empty(0, dtype=np.uint64), *self._keys])

    def tokens(self) -> npt.NDArray[np.int32]:
        """[num_tokens] int32, memory mapped."""
        if self.num_tokens == 0:
            return np.empty(0, dtype=np.int32)
        return np.memmap(self._path, dtype=TOKEN_DTYPE, mode="r")


def write_token_files(
    folder: Path,
    spool: Spool,
    order: npt.NDArray[np.int64],
    end_of_document: int,
    progress: Progress,
) -> dict[str, FileDigest]:
    """Writes corpus.bin, corpus.idx and corpus.crc into ``folder``: documents in ``order``, each with its end token.

    Args:
        folder: the scratch folder.
        spool: the documents.
        order: [num_documents] int64 spool positions in corpus order.
        end_of_document: id appended to every document.
        progress: told the number of bytes written.
    Returns:
        suffix -> size and SHA-256.
    """
    prefix = folder / "corpus"
    lengths = spool.lengths()
    checksums = StreamChecksums()
    with corpus_path(prefix, "bin").open("wb", buffering=0) as stream:
        for piece in _ordered_pieces(spool.tokens(), lengths, order, end_of_document):
            remaining = piece.astype(TOKEN_DTYPE, copy=False).data.cast("B")
            checksums.update(remaining)
            while remaining:
                remaining = remaining[stream.write(remaining) :]
            progress.advance(piece.nbytes)
    sync_file(corpus_path(prefix, "bin"))
    write_atomically(corpus_path(prefix, "crc"), checksums.crc_bytes())
    _native.write_index(
        os.fsencode(corpus_path(prefix, "idx")),
        lengths[order] + np.int32(1),
        DTYPE_CODES[TOKEN_DTYPE.name],
        TOKEN_DTYPE.itemsize,
    )
    digests = {"bin": FileDigest(size_bytes=checksums.size_bytes, sha256=checksums.sha256())}
    for suffix in ("idx", "crc"):
        path = corpus_path(prefix, suffix)
        digests[suffix] = FileDigest(size_bytes=path.stat().st_size, sha256=sha256_of_file(path))
    return digests


def publish(folder: Path, prefix: str | Path, sidecar: Sidecar) -> None:
    """Moves the files of ``folder`` to their names and writes the sidecar.

    The old sidecar goes first and the new one comes last: a run that is killed in between leaves no corpus rather
    than a mixed one.
    """
    corpus_path(prefix, "json").unlink(missing_ok=True)
    for suffix in _DATA_SUFFIXES:
        corpus_path(folder / "corpus", suffix).replace(corpus_path(prefix, suffix))
    sync_directory(Path(prefix).parent)
    sidecar.write(corpus_path(prefix, "json"))


def _ordered_pieces(
    tokens: npt.NDArray[np.int32], lengths: npt.NDArray[np.int32], order: npt.NDArray[np.int64], end_of_document: int
) -> Iterator[npt.NDArray[np.int32]]:
    """The content of .bin in pieces; each is overwritten by the next."""
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    buffer = np.empty(_BUFFER_TOKENS, dtype=np.int32)
    for first in range(0, len(order), _DOCUMENTS_AT_ONCE):
        part = order[first : first + _DOCUMENTS_AT_ONCE]
        ends = np.cumsum(lengths[part].astype(np.int64) + 1)
        position, written = 0, 0
        while position < len(part):
            stop = int(np.searchsorted(ends, written + _BUFFER_TOKENS, side="right"))
            if stop == position:
                # A document larger than the buffer; rare enough for a buffer of its own.
                stop = position + 1
                large = np.empty(int(ends[position]) - written, dtype=np.int32)
                _native.gather_documents(tokens, starts, lengths, part[position:stop], end_of_document, large)
                yield large
            else:
                size = _native.gather_documents(tokens, starts, lengths, part[position:stop], end_of_document, buffer)
                yield buffer[:size]
            position, written = stop, int(ends[stop - 1])
