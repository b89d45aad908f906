"""A token file and the lengths of its documents to a corpus: edges, index, checksums, sidecar."""

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from data_tools import _native
from data_tools.corpus.index import DTYPE_CODES
from data_tools.corpus.sidecar import FileDigest, InputFile, Sidecar, corpus_path
from data_tools.corpus.writer import TOKEN_DTYPE, publish, scratch_folder
from data_tools.engine.task import Manifest
from data_tools.io.atomic_file import atomic_output, open_unfollowed, sync_file
from data_tools.io.checksums import StreamChecksums, read_pieces, sha256_of_file
from data_tools.io.progress import Progress
from data_tools.io.system_errors import naming
from data_tools.tokenizer.qwen import END_OF_DOCUMENT, FINGERPRINT
from data_tools.version import version


def seal(
    prefix: Path,
    target: Path,
    gathered: Sequence[Manifest],
    rejected: Counter[str],
    inputs: Sequence[InputFile],
    shuffle_seed: int | None,
    progress: Progress,
) -> Sidecar:
    """Makes the corpus ``prefix``; the caller holds its lock.

    Args:
        prefix: the corpus.
        target: the token file of `tokenize_gather.gather_runs`; it is renamed into the corpus.
        gathered: the manifests of the ranges.
        rejected: reason -> records.
        inputs: for the sidecar.
        shuffle_seed: for the sidecar.
        progress: told the bytes read.
    Raises:
        OSError: the disk is full or fails.
    """
    num_documents = sum(manifest.records_out for manifest in gathered)
    _put_in_edges(target, gathered)
    checksums = StreamChecksums()
    with ThreadPoolExecutor(1) as pool:
        synced = pool.submit(sync_file, target)
        for piece in read_pieces(target):
            checksums.update(piece)
            progress.advance(len(piece))
        synced.result()
    with scratch_folder(prefix) as folder:
        corpus = folder / "corpus"
        with atomic_output(corpus_path(corpus, "crc")) as stream:
            stream.write(checksums.crc_bytes())
        with naming(folder / "lengths"), (folder / "lengths").open("wb") as stream:
            for manifest in gathered:
                stream.write(manifest.path(f"{manifest.name}.lengths").read_bytes())
        lengths = np.memmap(folder / "lengths", dtype=np.int32, mode="r")
        index_path = corpus_path(corpus, "idx")
        _native.write_index(os.fsencode(index_path), lengths, DTYPE_CODES[TOKEN_DTYPE.name], TOKEN_DTYPE.itemsize)
        digests = {"bin": FileDigest(size_bytes=checksums.size_bytes, sha256=checksums.sha256())}
        for suffix in ("idx", "crc"):
            path = corpus_path(corpus, suffix)
            digests[suffix] = FileDigest(size_bytes=path.stat().st_size, sha256=sha256_of_file(path))
        sidecar = Sidecar(
            dtype=TOKEN_DTYPE.name,
            num_tokens=checksums.size_bytes // TOKEN_DTYPE.itemsize,
            num_documents=num_documents,
            end_of_document=END_OF_DOCUMENT,
            tokenizer=FINGERPRINT,
            shuffle_seed=shuffle_seed,
            records_in=num_documents + rejected.total(),
            rejected=dict(sorted(rejected.items())),
            bin=digests["bin"],
            idx=digests["idx"],
            crc=digests["crc"],
            inputs=tuple(inputs),
            tool_version=version(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        # Written by many processes at their places in it, so no stream; it is synced above, before it gets its name.
        target.replace(corpus_path(corpus, "bin"))
        publish(folder, prefix, sidecar)
    return sidecar


def _put_in_edges(target: Path, gathered: Sequence[Manifest]) -> None:
    """Writes what each range has of the blocks that it shares with others; the same bytes if done again."""
    descriptor = open_unfollowed(target, os.O_WRONLY)
    try:
        for manifest in gathered:
            edges = manifest.path(f"{manifest.name}.edges").read_bytes()
            head, tail = edges[: manifest.values["head"]], edges[manifest.values["head"] :]
            with naming(target):
                os.pwrite(descriptor, head, manifest.values["start"])
                os.pwrite(descriptor, tail, manifest.values["stop"] - len(tail))
    finally:
        os.close(descriptor)
