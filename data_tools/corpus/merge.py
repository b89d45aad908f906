"""Several corpora to one, without looking at the tokens: bytes are copied in the kernel, checksums taken on the way."""

import errno
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from data_tools import _native
from data_tools.corpus.index import DTYPE_CODES, CorpusIndex
from data_tools.corpus.lock import corpus_lock
from data_tools.corpus.reader import Corpus
from data_tools.corpus.sidecar import FileDigest, Sidecar, corpus_path, digest_of
from data_tools.corpus.writer import prepare_place, publish, require_absent, scratch_folder
from data_tools.errors import DataError, RefusedError
from data_tools.io.atomic_file import sync_file, write_atomically
from data_tools.io.checksums import BlockCrcs, StreamChecksums, read_pieces, sha256_of_file
from data_tools.io.progress import Progress, progress_bar
from data_tools.io.system_errors import naming
from data_tools.version import version

_COPY_BYTES = 64 * 1024 * 1024
# What the kernel answers when it cannot copy between these two files; then sendfile, then our own loop.
_CANNOT = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF)


class _Source(NamedTuple):
    """A corpus to be merged; none of its files is open."""

    prefix: Path
    sidecar: Sidecar


def merge(prefixes: Sequence[str | Path], output: str | Path, *, overwrite: bool = False) -> Sidecar:
    """Writes the documents of ``prefixes``, one corpus after the other, as the corpus ``output``.

    Args:
        prefixes: at least one corpus; all with the same token type, end token and tokenizer.
        output: path of the new corpus without suffix.
        overwrite: replace a corpus that is there.
    Raises:
        DataError: a corpus is missing or damaged, they do not fit together, or the output exists.
        OSError: the disk is full or fails. Nothing is left behind in either case.
    """
    # Opened to see that the files are there, and closed again: there may be more corpora than files may be open.
    corpora = [_Source(Path(prefix), Corpus.open(prefix).sidecar) for prefix in prefixes]
    if not corpora:
        raise DataError("no corpora to merge; name at least one prefix")
    _check_agreement(corpora)
    if any(Path(prefix).absolute() == Path(output).absolute() for prefix in prefixes):
        raise RefusedError(f"{output}: is one of the corpora to merge; choose another output")
    prepare_place(output)
    require_absent(output, overwrite=overwrite)
    with corpus_lock(output), scratch_folder(output) as folder, naming(corpus_path(output, "bin")):
        digests = _write_files(corpora, folder)
        sidecar = _sidecar(corpora, digests)
        publish(folder, output, sidecar)
    return sidecar


def _check_agreement(corpora: Sequence[_Source]) -> None:
    first = corpora[0]
    for corpus in corpora:
        if corpus.sidecar.chat is not None:
            raise RefusedError(
                f"{corpus.prefix}: is a corpus of {corpus.sidecar.chat.kind}, which is not merged; name several of "
                "them in data.blend, or give qwen-data chat all their inputs"
            )
    for corpus in corpora[1:]:
        for name in ("dtype", "end_of_document", "tokenizer"):
            ours, theirs = getattr(corpus.sidecar, name), getattr(first.sidecar, name)
            if ours != theirs:
                raise DataError(
                    f"{corpus.prefix}: {name} is {ours}, but that of {first.prefix} is {theirs}; only corpora of one "
                    "tokenizer can be merged"
                )


def _write_files(corpora: Sequence[_Source], folder: Path) -> dict[str, FileDigest]:
    target = folder / "corpus"
    total = sum(corpus.sidecar.bin.size_bytes for corpus in corpora)
    with progress_bar("copying", total) as progress, corpus_path(target, "bin").open("wb", buffering=0) as stream:
        for corpus in corpora:
            with corpus_path(corpus.prefix, "bin").open("rb", buffering=0) as source:
                copy_file(source, stream, progress)
    lengths = np.concatenate([_lengths(corpus) for corpus in corpora])
    dtype = corpora[0].sidecar.dtype
    path = corpus_path(target, "idx")
    _native.write_index(os.fsencode(path), lengths, DTYPE_CODES[dtype], np.dtype(dtype).itemsize)
    with ThreadPoolExecutor(1) as pool:
        synced = pool.submit(sync_file, corpus_path(target, "bin"))
        checksums = _verified_checksums(corpora, corpus_path(target, "bin"))
        synced.result()
    write_atomically(corpus_path(target, "crc"), checksums.crc_bytes())
    digests = {"bin": digest_of(checksums)}
    for suffix in ("idx", "crc"):
        path = corpus_path(target, suffix)
        digests[suffix] = FileDigest(size_bytes=path.stat().st_size, sha256=sha256_of_file(path))
    return digests


def copy_file(source: BinaryIO, target: BinaryIO, progress: Progress) -> None:
    """Appends all of ``source`` to ``target``: shared blocks where the file system can, else a copy in the kernel.

    Args:
        source: unbuffered, at its beginning.
        target: unbuffered, at its end.
        progress: told the bytes copied.
    """
    remaining = os.fstat(source.fileno()).st_size
    ways = [_copy_range, _send, _read_and_write]
    while remaining:
        try:
            copied = ways[0](source, target, min(remaining, _COPY_BYTES))
        except OSError as error:
            if error.errno not in _CANNOT or len(ways) == 1:
                raise
            ways.pop(0)
            continue
        if copied == 0:
            if len(ways) > 1:
                ways.pop(0)  # Some file systems answer 0 where they cannot copy.
                continue
            raise DataError(f"{source.name}: {remaining} bytes are missing; it was truncated while it was copied")
        remaining -= copied
        progress.advance(copied)


def _copy_range(source: BinaryIO, target: BinaryIO, count: int) -> int:
    return os.copy_file_range(source.fileno(), target.fileno(), count)


def _send(source: BinaryIO, target: BinaryIO, count: int) -> int:
    return os.sendfile(target.fileno(), source.fileno(), None, count)


def _read_and_write(source: BinaryIO, target: BinaryIO, count: int) -> int:
    remaining = memoryview(source.read(min(count, 1024 * 1024)))
    copied = len(remaining)
    while remaining:
        remaining = remaining[target.write(remaining) :]
    return copied


def _lengths(corpus: _Source) -> "np.typing.NDArray[np.int32]":
    index = CorpusIndex.open(corpus.prefix)
    index.validate()
    if (index.num_tokens, index.num_documents) != (corpus.sidecar.num_tokens, corpus.sidecar.num_documents):
        raise DataError(f"{index.path}: does not belong to {corpus.prefix}.json; run: qwen-data verify {corpus.prefix}")
    return index.document_lengths().astype(np.int32)


def _verified_checksums(corpora: Sequence[_Source], merged: Path) -> StreamChecksums:
    """Checksums of the merged file; on the way the bytes of each input are compared with its .crc."""
    checksums = StreamChecksums()
    pieces = read_pieces(merged)
    piece = memoryview(b"")
    for corpus in corpora:
        own = BlockCrcs(corpus.sidecar.crc_block_bytes)
        remaining = corpus.sidecar.bin.size_bytes
        while remaining:
            piece = piece or memoryview(next(pieces))
            own.update(piece[:remaining])
            checksums.update(piece[:remaining])
            taken = min(remaining, len(piece))
            piece, remaining = piece[taken:], remaining - taken
        crcs = corpus_path(corpus.prefix, "crc")
        if sha256_of_file(crcs) != corpus.sidecar.crc.sha256:
            raise DataError(f"{crcs}: is damaged; run: qwen-data verify {corpus.prefix}")
        if own.crc_bytes() != crcs.read_bytes():
            raise DataError(f"{corpus.prefix}.bin: is damaged; run: qwen-data verify {corpus.prefix}")
    return checksums


def _sidecar(corpora: Sequence[_Source], digests: dict[str, FileDigest]) -> Sidecar:
    sidecars = [corpus.sidecar for corpus in corpora]
    rejected: Counter[str] = Counter()
    for sidecar in sidecars:
        rejected.update(sidecar.rejected)
    return Sidecar(
        dtype=sidecars[0].dtype,
        num_tokens=sum(sidecar.num_tokens for sidecar in sidecars),
        num_documents=sum(sidecar.num_documents for sidecar in sidecars),
        end_of_document=sidecars[0].end_of_document,
        tokenizer=sidecars[0].tokenizer,
        shuffle_seed=None,
        records_in=sum(sidecar.records_in for sidecar in sidecars),
        rejected=dict(sorted(rejected.items())),
        bin=digests["bin"],
        idx=digests["idx"],
        crc=digests["crc"],
        inputs=tuple(one for sidecar in sidecars for one in sidecar.inputs),
        tool_version=version(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
