"""Fixtures shared by all tests."""

from __future__ import annotations

import gc
import os
import re
import signal
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Tests assert behaviour, not time: a busy machine is no failure.
settings.register_profile("project", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("project")

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# As the command does where there is no GPU: half of the time that Megatron-Core takes to import.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

# What is imported while tests are collected stays: looking through it again and again for garbage takes a sixth of the
# time of collecting, and a tenth of that of many tests.
gc.disable()

# A shell that starts the tests in the background has them ignore interrupts, and so would every command that they start
# to interrupt it. A handler of our own is not inherited: commands begin with the default.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@cache
def uses_the_pool(path: Path) -> bool:
    """Whether a module has tests on the pool of ranks, or launches that are forked from the same process."""
    return re.search(r"RankPool|ForkedAgent|tests\.faults\.job", path.read_text(encoding="utf-8")) is not None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Among several workers the modules of the pool come first: they are the longest part."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: not uses_the_pool(item.path))


def pytest_collection_finish() -> None:
    """From here on garbage is looked for among what tests make, less often than by default (700)."""
    gc.freeze()
    gc.set_threshold(5000, 10, 10)
    gc.enable()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test that needs a GPU says so where there is none."""
    if item.get_closest_marker("gpu") is not None and not Path("/dev/nvidiactl").exists():
        pytest.skip("needs an NVIDIA GPU, and this machine has none (make test-gpu)")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Gives all modules that use the pool to one worker, which builds it once, and each other module to one.

    Marks of groups do not do it: pytest-xdist 3.8 writes them into the names of tests, which pytest 9.2 does not read.
    """
    from xdist.scheduler import LoadScopeScheduling

    class PoolScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            module = nodeid.partition("::")[0]
            return "pool" if uses_the_pool(config.rootpath / module) else module

    return PoolScheduling(config, log)


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
