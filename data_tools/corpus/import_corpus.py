"""A sidecar for a corpus that other Megatron tools made, after a check of all of it."""

from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_tools.corpus.index import CorpusIndex
from data_tools.corpus.lock import corpus_lock
from data_tools.corpus.sidecar import FileDigest, Sidecar, corpus_path, digest_of
from data_tools.corpus.token_scan import common_last_tokens, scan_tokens
from data_tools.errors import DataError, RefusedError
from data_tools.io.atomic_file import write_atomically
from data_tools.io.checksums import sha256_of_file
from data_tools.io.progress import progress_bar
from data_tools.io.threads import usable_cores
from data_tools.tokenizer.qwen import END_OF_DOCUMENT, NUM_TOKENS
from data_tools.version import version


class Imported(NamedTuple):
    """The new sidecar and what is unusual about the corpus."""

    sidecar: Sidecar
    unended_documents: int  # documents that do not end with the end-of-document token


def import_corpus(
    prefix: str | Path,
    *,
    end_of_document: int = END_OF_DOCUMENT,
    vocab_size: int = NUM_TOKENS,
    overwrite: bool = False,
) -> Imported:
    """Checks PREFIX.bin and PREFIX.idx and writes PREFIX.crc and PREFIX.json; the first two are not changed.

    Any integer token type and several sequences a document are accepted. The tokens are read once; memory grows by 17
    bytes a document.

    Args:
        prefix: path of the corpus without suffix.
        end_of_document: id that ends documents.
        vocab_size: ids must be below it.
        overwrite: replace a sidecar that is there.
    Raises:
        DataError: a file is missing or breaks the format, .idx and .bin do not belong together, an id is out of range,
            no document ends with ``end_of_document``, or there is a sidecar already.
        OSError: the disk is full or fails.
    """
    sidecar_path, bin_path = corpus_path(prefix, "json"), corpus_path(prefix, "bin")
    with corpus_lock(prefix):
        if sidecar_path.exists() and not overwrite:
            raise RefusedError(f"{sidecar_path}: already there; use --overwrite to check the corpus and write it again")
        index = CorpusIndex.open(prefix)
        index.validate()
        size = _checked_size(bin_path, index)
        ends = index.document_ends()
        _require_end_of_document(bin_path, index.dtype, ends, end_of_document)
        with progress_bar("importing", size) as progress:
            scan = scan_tokens(
                bin_path, index.dtype, ends, end_of_document, vocab_size, progress, workers=usable_cores()
            )
        if scan.checksums.size_bytes != size:
            raise DataError(f"{bin_path}: changed while it was read; import it when it is complete")
        crc = scan.checksums.crc_bytes()
        sidecar_path.unlink(missing_ok=True)
        write_atomically(corpus_path(prefix, "crc"), crc)
        sidecar = Sidecar(
            dtype=np.dtype(index.dtype).name,
            num_tokens=index.num_tokens,
            num_documents=index.num_documents,
            end_of_document=end_of_document,
            tokenizer=None,
            shuffle_seed=None,
            records_in=index.num_documents,
            rejected={},
            bin=digest_of(scan.checksums),
            idx=FileDigest(size_bytes=index.path.stat().st_size, sha256=sha256_of_file(index.path)),
            crc=FileDigest(size_bytes=len(crc), sha256=sha256_of_file(corpus_path(prefix, "crc"))),
            inputs=(),
            tool_version=version(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        try:
            sidecar.write(sidecar_path)
        except BaseException:
            # Without a sidecar nobody knows what it is of.
            corpus_path(prefix, "crc").unlink(missing_ok=True)
            raise
    return Imported(sidecar, scan.unended_documents)


def _checked_size(path: Path, index: CorpusIndex) -> int:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    expected = index.num_tokens * index.dtype.itemsize
    if size != expected:
        raise DataError(
            f"{path}: {size} bytes, but {index.path} ends at byte {expected} ({index.num_tokens} tokens of "
            f"{index.dtype.itemsize} bytes); the file is truncated, or the two do not belong together"
        )
    if index.num_tokens == 0:
        raise DataError(f"{path}: the corpus is empty; training needs at least one document")
    return size


def _require_end_of_document(path: Path, dtype: np.dtype, ends: np.ndarray, end_of_document: int) -> None:
    last_tokens = common_last_tokens(path, dtype, ends)
    if end_of_document not in last_tokens:
        common = " and ".join(f"{token} ({count} times)" for token, count in last_tokens.most_common(2))
        raise DataError(
            f"{path}: none of {last_tokens.total()} documents looked at ends with the end-of-document token "
            f"{end_of_document}; most end with {common}. Give the right one with --end-of-document ID, or make the "
            "corpus again with it appended (Megatron-LM: preprocess_data.py --append-eod)"
        )
