"""Small corpora of real text: the running Python's standard library."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from data_tools.adopt import adopt
from data_tools.sources.python_stdlib import source_files
from data_tools.tokenize import tokenize

END_OF_BYTES = 256


def write_byte_corpus(prefix: Path, num_documents: int) -> Path:
    """Source files as bytes, one token each, written by Megatron-Core's builder and adopted."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.int32)
    for path in list(source_files())[:num_documents]:
        tokens = np.append(np.frombuffer(path.read_bytes()[:4000], dtype=np.uint8).astype(np.int32), END_OF_BYTES)
        builder.add_document(tokens, [len(tokens)])
    builder.finalize(f"{prefix}.idx")
    adopt(prefix, end_of_document=END_OF_BYTES)
    return prefix


def write_code_corpus(prefix: Path, num_files: int) -> Path:
    """Source files in Qwen's vocabulary."""
    source = prefix.with_suffix(".jsonl")
    with source.open("w", encoding="utf-8") as stream:
        for path in list(source_files())[:num_files]:
            stream.write(json.dumps({"text": path.read_text(encoding="utf-8")}) + "\n")
    tokenize([source], prefix)
    return prefix
