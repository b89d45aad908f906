"""Every byte of a corpus against its sidecar, and the index against the tokens."""

from pathlib import Path

import numpy as np

from data_tools.corpus.index import CorpusIndex
from data_tools.corpus.reader import Corpus
from data_tools.corpus.sidecar import FileDigest, Sidecar, corpus_path
from data_tools.corpus.token_scan import TokenScan, scan_tokens
from data_tools.errors import DataError
from data_tools.io.checksums import CRC_DTYPE, sha256_of_file
from data_tools.io.progress import progress_bar
from data_tools.io.threads import map_in_threads, usable_cores

_BLOCKS_NAMED = 5


def verify(prefix: str | Path, *, workers: int | None = None) -> Sidecar:
    """Reads all files of a corpus and compares them with the sidecar and with each other.

    Args:
        prefix: path of the corpus without suffix.
        workers: threads; None: one for each core that there is. Each takes segments of 32 MiB; a larger corpus of an
            earlier version is one segment.
    Returns:
        the sidecar, all of whose statements hold.
    Raises:
        DataError: names every file that is damaged and, for .bin, the damaged blocks.
    """
    corpus = Corpus.open(prefix)  # Existence and sizes first: cheap, and the most common damage.
    sidecar = corpus.sidecar
    problems = []
    small_files = [(corpus_path(prefix, "idx"), sidecar.idx), (corpus_path(prefix, "crc"), sidecar.crc)]
    for found in map_in_threads(lambda file: _digest_problems(*file), small_files, workers or usable_cores()):
        problems += found
    if problems:
        raise DataError("\n".join(problems))
    index = CorpusIndex.open(prefix)
    index.validate()
    problems = _index_problems(index, sidecar)
    if problems:
        raise DataError("\n".join(problems))
    bin_path = corpus_path(prefix, "bin")
    with progress_bar("verifying", sidecar.bin.size_bytes) as progress:
        # No limit on the ids: damage shows in the checksums, which name the blocks.
        scan = scan_tokens(
            bin_path,
            index.dtype,
            index.document_ends(),
            sidecar.end_of_document,
            None,
            progress,
            block_bytes=sidecar.crc_block_bytes,
            segment_bytes=sidecar.bin.segment_bytes,
            workers=workers or usable_cores(),
        )
    problems = _token_problems(prefix, sidecar, scan)
    if problems:
        raise DataError("\n".join(problems))
    return sidecar


def _digest_problems(path: Path, digest: FileDigest) -> list[str]:
    try:
        size, sha256 = path.stat().st_size, sha256_of_file(path)
    except OSError as error:
        return [f"{path}: cannot be read: {error.strerror}"]
    if size != digest.size_bytes:
        return [f"{path}: {size} bytes, the sidecar says {digest.size_bytes}"]
    if sha256 != digest.sha256:
        return [f"{path}: sha256 {sha256}, the sidecar says {digest.sha256}"]
    return []


def _index_problems(index: CorpusIndex, sidecar: Sidecar) -> list[str]:
    stated = {"dtype": sidecar.dtype, "num_tokens": sidecar.num_tokens, "num_documents": sidecar.num_documents}
    found = {
        "dtype": np.dtype(index.dtype).name,
        "num_tokens": index.num_tokens,
        "num_documents": index.num_documents,
    }
    return [
        f"{index.path}: {name} is {found[name]}, the sidecar says {value}"
        for name, value in stated.items()
        if value != found[name]
    ]


def _token_problems(prefix: str | Path, sidecar: Sidecar, scan: TokenScan) -> list[str]:
    bin_path = corpus_path(prefix, "bin")
    problems = []
    actual = np.frombuffer(scan.checksums.crc_bytes(), dtype=CRC_DTYPE)
    expected = np.fromfile(corpus_path(prefix, "crc"), dtype=CRC_DTYPE)
    damaged = np.flatnonzero(actual != expected)
    for block in damaged[:_BLOCKS_NAMED].tolist():
        first = block * sidecar.crc_block_bytes
        last = min(first + sidecar.crc_block_bytes, sidecar.bin.size_bytes) - 1
        problems.append(f"{bin_path}: block {block} (bytes {first} to {last}) is damaged")
    if len(damaged) > _BLOCKS_NAMED:
        problems.append(f"{bin_path}: {len(damaged)} of {len(expected)} blocks are damaged")
    if not len(damaged) and scan.checksums.sha256() != sidecar.bin.sha256:
        problems.append(f"{bin_path}: sha256 {scan.checksums.sha256()}, the sidecar says {sidecar.bin.sha256}")
    # Imported corpora may hold documents without the end token and dialogues have none, our texts do not.
    is_text = sidecar.tokenizer is not None and sidecar.chat is None
    if not damaged.size and is_text and scan.first_unended is not None:
        problems.append(
            f"{bin_path}: {scan.unended_documents} documents, first document {scan.first_unended}, do not end with "
            f"{sidecar.end_of_document}: {corpus_path(prefix, 'idx')} does not belong to it"
        )
    return problems
