"""Several corpora to one, without looking at the tokens: bytes are copied in the kernel, checksums taken on the way."""

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from data_tools import _native
from data_tools.corpus.concatenation import Source, concatenate
from data_tools.corpus.index import DTYPE_CODES, CorpusIndex
from data_tools.corpus.lock import corpus_lock
from data_tools.corpus.reader import Corpus
from data_tools.corpus.sidecar import FileDigest, Sidecar, corpus_path, digest_of
from data_tools.corpus.writer import prepare_place, publish, require_absent, scratch_folder
from data_tools.errors import DataError, RefusedError
from data_tools.io.atomic_file import write_atomically
from data_tools.io.checksums import sha256_of_file
from data_tools.io.system_errors import naming
from data_tools.io.threads import usable_cores
from data_tools.version import version


def merge(
    prefixes: Sequence[str | Path], output: str | Path, *, overwrite: bool = False, workers: int | None = None
) -> Sidecar:
    """Writes the documents of ``prefixes``, one corpus after the other, as the corpus ``output``.

    Args:
        prefixes: at least one corpus; all with the same token type, end token and tokenizer.
        output: path of the new corpus without suffix.
        overwrite: replace a corpus that is there.
        workers: threads that compare what is copied with its checksums; None: one for each core that there is.
    Raises:
        DataError: a corpus is missing or damaged, they do not fit together, or the output exists.
        OSError: the disk is full or fails. Nothing is left behind in either case.
    """
    # Opened to see that the files are there, and closed again: there may be more corpora than files may be open.
    corpora = [Source(Path(prefix), Corpus.open(prefix).sidecar) for prefix in prefixes]
    if not corpora:
        raise DataError("no corpora to merge; name at least one prefix")
    _check_agreement(corpora)
    if any(Path(prefix).absolute() == Path(output).absolute() for prefix in prefixes):
        raise RefusedError(f"{output}: is one of the corpora to merge; choose another output")
    prepare_place(output)
    require_absent(output, overwrite=overwrite)
    with corpus_lock(output), scratch_folder(output) as folder, naming(corpus_path(output, "bin")):
        digests = _write_files(corpora, folder, workers or usable_cores())
        sidecar = _sidecar(corpora, digests)
        publish(folder, output, sidecar)
    return sidecar


def _check_agreement(corpora: Sequence[Source]) -> None:
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


def _write_files(corpora: Sequence[Source], folder: Path, workers: int) -> dict[str, FileDigest]:
    target = folder / "corpus"
    with ThreadPoolExecutor(1) as pool:
        index = pool.submit(_write_index, corpora, corpus_path(target, "idx"))
        checksums = concatenate(corpora, corpus_path(target, "bin"), workers)
        digests = {"bin": digest_of(checksums), "idx": index.result()}
    write_atomically(corpus_path(target, "crc"), checksums.crc_bytes())
    return {**digests, "crc": _digest(corpus_path(target, "crc"))}


def _write_index(corpora: Sequence[Source], path: Path) -> FileDigest:
    lengths = np.concatenate([_lengths(corpus) for corpus in corpora])
    dtype = corpora[0].sidecar.dtype
    _native.write_index(os.fsencode(path), lengths, DTYPE_CODES[dtype], np.dtype(dtype).itemsize)
    return _digest(path)


def _digest(path: Path) -> FileDigest:
    return FileDigest(size_bytes=path.stat().st_size, sha256=sha256_of_file(path))


def _lengths(corpus: Source) -> "np.typing.NDArray[np.int32]":
    index = CorpusIndex.open(corpus.prefix)
    index.validate()
    if (index.num_tokens, index.num_documents) != (corpus.sidecar.num_tokens, corpus.sidecar.num_documents):
        raise DataError(f"{index.path}: does not belong to {corpus.prefix}.json; run: qwen-data verify {corpus.prefix}")
    return index.document_lengths().astype(np.int32)


def _sidecar(corpora: Sequence[Source], digests: dict[str, FileDigest]) -> Sidecar:
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
