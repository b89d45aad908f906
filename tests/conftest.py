"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Tests assert behaviour, not time: a busy machine is no failure.
settings.register_profile("project", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("project")

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# As the command does where there is no GPU: half of the time that Megatron-Core takes to import.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")


@pytest.fixture(scope="session")
def ranks() -> Iterator["RankPool"]:  # noqa: F821, UP037 - imported late: it brings torch and Megatron
    """Processes for distributed jobs."""
    from tests.support.ranks import RankPool

    pool = RankPool()
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def byte_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small corpus of real text, one token a byte, vocabulary 257 (256 ends a document)."""
    from tests.support.corpora import write_byte_corpus

    return write_byte_corpus(tmp_path_factory.mktemp("corpus") / "bytes", num_documents=40)


@pytest.fixture(scope="session")
def code_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Part of the standard library's source in Qwen's real vocabulary."""
    from tests.support.corpora import write_code_corpus

    return write_code_corpus(tmp_path_factory.mktemp("corpus") / "code", num_files=60)
