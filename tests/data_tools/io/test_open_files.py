"""More corpora than files may be open: the soft limit is raised, or one message says what to do."""

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from data_tools.corpus.merge import merge
from data_tools.errors import DataError
from data_tools.io.open_files import allow_open_files
from qwen_megatron.config.sections.data import DataConfig
from qwen_megatron.data.pretraining.dataset import open_dataset
from qwen_megatron.jobs.corpora import check_data

NUM_CORPORA = 100


@contextmanager
def soft_limit(more: int) -> Iterator[int]:
    """Lets this process open about as many files more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = len(os.listdir("/proc/self/fd")) + more
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield limit
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def corpora(make_corpus: Callable[..., Path]) -> list[str]:
    """One small corpus under many names."""
    one = make_corpus()
    prefixes = [f"{one}-{number}" for number in range(NUM_CORPORA)]
    for prefix in prefixes:
        for suffix in ("bin", "idx", "crc", "json"):
            os.link(f"{one}.{suffix}", f"{prefix}.{suffix}")
    return prefixes


def test_merge_opens_one_corpus_at_a_time(corpora: list[str], tmp_path: Path) -> None:
    with soft_limit(40) as limit:
        sidecar = merge(corpora, tmp_path / "all")
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == limit
    assert sidecar.num_documents == 9 * NUM_CORPORA


def test_training_raises_the_soft_limit(corpora: list[str]) -> None:
    with soft_limit(40) as limit:
        assert check_data(DataConfig(blend=corpora), seq_length=8, vocab_size=None) == []
        dataset = open_dataset(corpora, seq_length=8, seed=1, eval_samples=0, vocab_size=200_000)
        assert len({sample.corpus for sample in map(dataset.train_id, range(2000))}) == NUM_CORPORA
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > limit
        for number in range(NUM_CORPORA):
            assert len(dataset.corpora[number].tokens(0, 2)) == 2


def test_a_hard_limit_that_is_too_low_is_one_message(corpora: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    most = 1024 + len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (most, most))
    allow_open_files(500, "500 files")
    with pytest.raises(DataError, match=rf"^5000 files need \d+ open files, but this process may have {most}; raise"):
        allow_open_files(5000, "5000 files")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (300, 300))
    (problem,) = check_data(DataConfig(blend=corpora), seq_length=8, vocab_size=None)
    assert problem.startswith(f"data.blend: its {NUM_CORPORA} corpora need ")
