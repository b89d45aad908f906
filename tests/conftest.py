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
def scope_of(path: Path) -> str:
    """What a worker gets at once: all modules with launches, all others that use the pool of ranks, or one module.

    Launches are forked from the process that the ranks of a pool are forked from, which takes seconds to import what
    they need; while they wait for ranks that hang or end, other tests have the cores.
    """
    text = path.read_text(encoding="utf-8")
    if re.search(r"ForkedAgent|tests\.faults\.job", text):
        return "launches"
    return "pool" if "RankPool" in text else str(path)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """As commands do, and for the same reason."""
    from qwen_megatron.libraries import without_reporters

    with without_reporters():
        return (yield)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Among several workers the pool comes first, launches second: they are the longest parts."""
    if hasattr(config, "workerinput"):
        first = {"pool": 0, "launches": 1}
        items.sort(key=lambda item: first.get(scope_of(item.path), 2))


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
    """Gives the modules of a scope to one worker.

    Marks of groups do not do it: pytest-xdist 3.8 writes them into the names of tests, which pytest 9.2 does not read.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ScopeScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return scope_of(config.rootpath / nodeid.partition("::")[0])

    return ScopeScheduling(config, log)


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


@pytest.fixture(scope="session")
def qwen_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow model of random weights with Qwen's vocabulary; for reading only."""
    import dataclasses

    from qwen_megatron.convert.from_hf import write_weights
    from tests.convert.random_weights import TINY, RandomWeights

    folder = tmp_path_factory.mktemp("qwen") / "checkpoint"
    model = dataclasses.replace(TINY, vocab_size=151936, hidden_size=16, kv_channels=4, tie_word_embeddings=True)
    write_weights(RandomWeights(model), folder)
    return folder


@pytest.fixture(scope="session")
def qwen_folder(qwen_checkpoint: Path) -> Path:
    """Its export, a Hugging Face folder with Qwen's tokenizer; for reading only."""
    from qwen_megatron.cli.main import main

    folder = qwen_checkpoint.parent / "hf"
    assert main(["convert", "to-hf", str(qwen_checkpoint), str(folder), "--format", "qwen2"]) == 0
    return folder
