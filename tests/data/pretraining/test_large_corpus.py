"""A corpus of 10^12 tokens opens like a small one: nothing is read, nothing grows with it."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from qwen_megatron.data.blended import SampleId
from qwen_megatron.data.pretraining.dataset import BlendedDataset, open_dataset
from tests.support.corpora import seal, write_sparse_corpus

SMALL, LARGE = 10**7, 10**12
SEQ = 2048


def opened(prefix: Path) -> BlendedDataset:
    return open_dataset([str(prefix)], seq_length=SEQ, seed=1234, eval_samples=512, vocab_size=151_936)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Four terabytes, and forty megabytes, of holes."""
    folder = tmp_path_factory.mktemp("sparse")
    return {size: write_sparse_corpus(folder / str(size), size) for size in (SMALL, LARGE)}


def test_memory_to_open_does_not_grow_beyond_a_bit_a_block(corpora: dict[int, Path]) -> None:
    peaks = {}
    for size, prefix in corpora.items():
        tracemalloc.start()
        dataset = opened(prefix)
        for number in (0, 10**6, 10**11):
            dataset.train_id(number)
        peaks[size] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    blocks = 4 * LARGE // (64 * 1024)
    assert peaks[LARGE] - peaks[SMALL] < blocks // 8 + (1 << 20)


def test_any_step_names_its_samples_and_an_epoch_has_each_once(corpora: dict[int, Path]) -> None:
    dataset = opened(corpora[LARGE])
    (count,) = dataset.train_counts
    assert count == (LARGE - 1) // SEQ - 512
    for number in (0, 1, 10**8, count - 1):
        sample = dataset.train_id(number)
        assert (sample.epoch, sample.corpus) == (0, 0)
        # The permutation is a bijection: its own inverse is not at hand, but neighbours never meet.
        assert 0 <= sample.sample < count
    assert dataset.train_id(count).epoch == 1
    # Step 100,000 of 2048 samples: all different, spread over the whole corpus.
    places = np.array([dataset.train_id(number).sample for number in range(10**5 * 2048, 10**5 * 2048 + 2048)])
    assert len(set(places.tolist())) == 2048
    assert np.quantile(places / count, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.06)


def test_the_last_samples_are_held_out_and_can_be_read(corpora: dict[int, Path]) -> None:
    dataset = opened(corpora[LARGE])
    (count,) = dataset.train_counts
    assert [sample.sample for sample in dataset.eval_ids] == list(range(count, count + 512))
    for sample in (dataset.eval_ids[-1], dataset.train_id(10**8), SampleId(corpus=0, sample=0, epoch=0)):
        seal(corpora[LARGE], sample.sample * SEQ, SEQ + 1)
        tokens = dataset.tokens(sample)
        assert (len(tokens), tokens.any()) == (SEQ + 1, False)


def test_the_files_are_holes(corpora: dict[int, Path]) -> None:
    """Or the corpus would not be one of 10^12 tokens for what was tested."""
    status = corpora[LARGE].with_suffix(".bin").stat()
    assert status.st_size == 4 * LARGE
    assert status.st_blocks * 512 < 1 << 20
