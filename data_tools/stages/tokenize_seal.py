"""A token file, its checksums and the lengths of its documents to a corpus: index, sidecar, names."""

import os
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from data_tools import _native
from data_tools.corpus.index import DTYPE_CODES
from data_tools.corpus.sidecar import FileDigest, InputFile, Sidecar, corpus_path
from data_tools.corpus.writer import TOKEN_DTYPE, publish, scratch_folder
from data_tools.engine.task import Manifest
from data_tools.io.atomic_file import atomic_output
from data_tools.io.checksums import root_of_segments, sha256_of_file
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
) -> Sidecar:
    """Makes the corpus ``prefix``; the caller holds its lock.

    Args:
        prefix: the corpus.
        target: the token file of `tokenize_gather.gather_runs`; it is renamed into the corpus.
        gathered: the manifests of its stretches.
        rejected: reason -> records.
        inputs: for the sidecar.
        shuffle_seed: for the sidecar.
    Raises:
        OSError: the disk is full or fails.
    """
    num_documents = sum(manifest.records_out for manifest in gathered)
    num_tokens = sum(manifest.values["tokens"] for manifest in gathered)
    sha256s = [bytes.fromhex(digest) for manifest in gathered for digest in manifest.values["digests"]]
    with scratch_folder(prefix) as folder:
        corpus = folder / "corpus"
        with atomic_output(corpus_path(corpus, "crc")) as stream:
            for manifest in gathered:
                stream.write(manifest.path(f"{manifest.name}.crc").read_bytes())
        with naming(folder / "lengths"), (folder / "lengths").open("wb") as stream:
            for manifest in gathered:
                stream.write(manifest.path(f"{manifest.name}.lengths").read_bytes())
        lengths = np.memmap(folder / "lengths", dtype=np.int32, mode="r")
        index_path = corpus_path(corpus, "idx")
        _native.write_index(os.fsencode(index_path), lengths, DTYPE_CODES[TOKEN_DTYPE.name], TOKEN_DTYPE.itemsize)
        size_bytes = TOKEN_DTYPE.itemsize * num_tokens
        segment_bytes = gathered[0].values["segment_bytes"] if len(sha256s) > 1 else None
        digests = {
            "bin": FileDigest(size_bytes=size_bytes, sha256=root_of_segments(sha256s), segment_bytes=segment_bytes)
        }
        for suffix in ("idx", "crc"):
            path = corpus_path(corpus, suffix)
            digests[suffix] = FileDigest(size_bytes=path.stat().st_size, sha256=sha256_of_file(path))
        sidecar = Sidecar(
            dtype=TOKEN_DTYPE.name,
            num_tokens=num_tokens,
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
        # Written by many processes at their places in it, so no stream; the tasks that did it have synced it.
        target.replace(corpus_path(corpus, "bin"))
        publish(folder, prefix, sidecar)
    return sidecar
