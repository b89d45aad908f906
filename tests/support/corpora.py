"""Small corpora of real text: the running Python's standard library."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.corpus.import_corpus import import_corpus
from data_tools.corpus.sidecar import FileDigest, Sidecar, corpus_path
from data_tools.io.checksums import BLOCK_BYTES, CRC_DTYPE, num_blocks
from data_tools.sources.python_stdlib import source_files
from data_tools.stages.tokenize_files import tokenize

END_OF_BYTES = 256
# Qwen's <|endoftext|>, above all its ordinary tokens.
END_OF_TEXT = 151_643


def write_byte_corpus(prefix: Path, num_documents: int) -> Path:
    """Source files as bytes, one token each, written by Megatron-Core's builder and imported."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.int32)
    for path in list(source_files())[:num_documents]:
        tokens = np.append(np.frombuffer(path.read_bytes()[:4000], dtype=np.uint8).astype(np.int32), END_OF_BYTES)
        builder.add_document(tokens, [len(tokens)])
    builder.finalize(f"{prefix}.idx")
    import_corpus(prefix, end_of_document=END_OF_BYTES)
    return prefix


def write_code_corpus(prefix: Path, num_files: int) -> Path:
    """Source files in Qwen's vocabulary."""
    source = prefix.with_suffix(".jsonl")
    with source.open("w", encoding="utf-8") as stream:
        for path in list(source_files())[:num_files]:
            stream.write(json.dumps({"text": path.read_text(encoding="utf-8")}) + "\n")
    tokenize([source], prefix)
    return prefix


def write_folded_corpus(prefix: Path, source: Path, vocab_size: int, longest: int | None = None) -> Path:
    """A corpus in Qwen's vocabulary with its ids taken modulo a smaller one, whose last id ends a document.

    Args:
        prefix: Where it is written.
        source: The corpus.
        vocab_size: The smaller vocabulary.
        longest: Tokens a document; longer ones are cut into several.
    """
    from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.int32)
    for document in IndexedDataset(str(source)):
        tokens = document[document != END_OF_TEXT] % (vocab_size - 1)
        step = longest or len(tokens)
        for start in range(0, len(tokens), step):
            piece = np.append(tokens[start : start + step], vocab_size - 1).astype(np.int32)
            builder.add_document(piece, [len(piece)])
    builder.finalize(f"{prefix}.idx")
    import_corpus(prefix, end_of_document=vocab_size - 1)
    return prefix


def write_formula_corpus(prefix: Path, num_documents: int, end: int = END_OF_TEXT) -> Path:
    """Documents that follow from a formula alone: the same bytes on every machine and with every Python.

    Each counts through the ids below `end` from a place and in a stride of its own; every third token is one of few.
    """
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.int32)
    for number in range(num_documents):
        places = np.arange(50 + 37 * number % 400, dtype=np.int64)
        tokens = (number * 7919 + places * (number % 97 + 1)) % end
        tokens[::3] = places[::3] * number % 64
        builder.add_document(np.append(tokens, end).astype(np.int32), [len(tokens) + 1])
    builder.finalize(f"{prefix}.idx")
    import_corpus(prefix, end_of_document=end)
    return prefix


def write_sparse_corpus(prefix: Path, num_tokens: int, block_bytes: int = BLOCK_BYTES) -> Path:
    """A corpus of zeros that takes no room on the disk: .bin and .crc are holes; what is read must be sealed."""
    sizes = {"bin": 4 * num_tokens, "crc": 4 * num_blocks(4 * num_tokens, block_bytes), "idx": 0}
    for suffix, size in sizes.items():
        with corpus_path(prefix, suffix).open("wb") as file:
            file.truncate(size)
    digests: dict[str, Any] = {
        name: FileDigest(size_bytes=size, sha256=f"{num_tokens:064x}") for name, size in sizes.items()
    }
    Sidecar(
        dtype="int32",
        num_tokens=num_tokens,
        num_documents=1,
        end_of_document=END_OF_BYTES,
        tokenizer=None,
        shuffle_seed=0,
        records_in=1,
        rejected={},
        inputs=(),
        tool_version="test",
        created="2026-01-01T00:00:00Z",
        crc_block_bytes=block_bytes,
        bin=digests["bin"],
        idx=digests["idx"],
        crc=digests["crc"],
    ).write(corpus_path(prefix, "json"))
    return prefix


def write_zero_corpus(prefix: Path, num_tokens: int, block_bytes: int = BLOCK_BYTES) -> Path:
    """A sparse corpus whose every block is sealed; a whole number of blocks."""
    blocks, rest = divmod(4 * num_tokens, block_bytes)
    assert not rest
    write_sparse_corpus(prefix, num_tokens, block_bytes)
    np.full(blocks, zlib.crc32(bytes(block_bytes)), dtype=CRC_DTYPE).tofile(corpus_path(prefix, "crc"))
    return prefix


def seal(prefix: Path, first_token: int, count: int) -> None:
    """Writes the checksums of the zeros that hold these tokens."""
    size = corpus_path(prefix, "bin").stat().st_size
    blocks = range(4 * first_token // BLOCK_BYTES, num_blocks(4 * (first_token + count)))
    sums = [zlib.crc32(bytes(min(BLOCK_BYTES, size - block * BLOCK_BYTES))) for block in blocks]
    with corpus_path(prefix, "crc").open("r+b") as file:
        file.seek(4 * blocks.start)
        file.write(np.array(sums, dtype=CRC_DTYPE).tobytes())
