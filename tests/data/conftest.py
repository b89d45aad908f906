"""Corpora without files: what a dataset asks of a corpus, on tokens in memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest


class MemoryCorpus:
    """Tokens in memory with the attributes of `data_tools.corpus.reader.Corpus` that training reads."""

    def __init__(self, name: str, tokens: np.ndarray, end_of_document: int):
        self.fingerprint = name
        self.content = tokens
        self.num_tokens = len(tokens)
        self.end_of_document = end_of_document
        self.times_verified = 0

    def verify_again(self) -> None:
        self.times_verified += 1

    def tokens(self, start: int, count: int) -> np.ndarray:
        assert start >= 0
        assert start + count <= self.num_tokens
        return self.content[start : start + count].astype(np.int64)


@pytest.fixture(scope="session")
def memory_corpus() -> Callable[..., MemoryCorpus]:
    """Makes a corpus of consecutive numbers: every token tells where it stands."""

    def make(name: str, num_tokens: int, end_of_document: int = 999) -> MemoryCorpus:
        return MemoryCorpus(name, np.arange(num_tokens, dtype=np.int32), end_of_document)

    return make
