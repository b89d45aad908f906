"""Small inputs and corpora for the tests of data_tools."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import orjson
import pytest

from data_tools.stages.tokenize_files import TokenizeOptions, tokenize

TEXTS = [
    "Hello world",
    "def main():\n    return 1234567\n",
    "我是一只猫",
    "caf\u00e9 and cafe\u0301",
    'print("<|endoftext|>")',
    "a\r\n\r\nb",
    "x",
    "  \n\n  x",
    "The quick brown fox jumps over the lazy dog. " * 50,
]


@pytest.fixture
def texts() -> list[str]:
    """Documents of different scripts, lengths and traps."""
    return list(TEXTS)


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Writes texts (or raw lines, as bytes) to a JSONL file."""

    def write(lines: Sequence[str | bytes], name: str = "input.jsonl") -> Path:
        path = tmp_path / name
        encoded = (line if isinstance(line, bytes) else orjson.dumps({"text": line}) for line in lines)
        path.write_bytes(b"".join(line + b"\n" for line in encoded))
        return path

    return write


@pytest.fixture
def make_corpus(tmp_path: Path, write_jsonl: Callable[..., Path]) -> Callable[..., Path]:
    """Tokenizes texts and returns the prefix."""

    def make(lines: Sequence[str | bytes] = TEXTS, name: str = "corpus", **options: object) -> Path:
        prefix = tmp_path / name
        tokenize([write_jsonl(lines, f"{name}.jsonl")], prefix, TokenizeOptions(**options))  # type: ignore[arg-type]
        return prefix

    return make


@pytest.fixture
def write_megatron_corpus(tmp_path: Path) -> Callable[..., Path]:
    """Writes documents, each a list of sequences, with megatron-core's own builder."""

    def write(
        documents: Sequence[Sequence[Sequence[int]]], dtype: type[np.number] = np.int32, name: str = "megatron"
    ) -> Path:
        import torch
        from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

        prefix = tmp_path / name
        builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
        for sequences in documents:
            for sequence in sequences:
                builder.add_item(torch.tensor(sequence, dtype=torch.int64))
            builder.end_document()
        builder.finalize(f"{prefix}.idx")
        return prefix

    return write


@pytest.fixture
def qwen_data() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command in a process of its own."""

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "data_tools", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )

    return run
