"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import signal
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

# A shell that starts the tests in the background has them ignore interrupts, and so would every command that they start
# to interrupt it. A handler of our own is not inherited: commands begin with the default.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Among several workers (pytest-xdist), what needs the pool of ranks goes to one of them, every module to one.

    So the pool is built once, and fixtures of a module too. The pool's tests come first: they are the longest part, and
    the other workers have all the rest meanwhile.
    """
    if not hasattr(config, "workerinput"):
        return
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            pooled = "ranks" in getattr(item, "fixturenames", ())
            item.add_marker(pytest.mark.xdist_group("ranks" if pooled else item.nodeid.partition("::")[0]))
    items.sort(key=lambda item: next(item.iter_markers("xdist_group")).args[0] != "ranks")


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
