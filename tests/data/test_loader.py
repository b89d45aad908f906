"""The loader: the same samples a step on any layout and from any start, nothing lost in evaluation or in threads."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qwen_megatron.data.batch import Batch
from qwen_megatron.data.blended import SampleId
from qwen_megatron.data.loader import Loader
from qwen_megatron.data.pretraining.dataset import BlendedDataset, open_dataset
from qwen_megatron.errors import DataError

LENGTH = 8
GLOBAL = 8
MakeCorpus = Callable[..., Any]


@pytest.fixture
def dataset(memory_corpus: MakeCorpus) -> BlendedDataset:
    corpora = {"a": memory_corpus("a", 900), "b": memory_corpus("b", 500)}
    return BlendedDataset(corpora, [2.0, 1.0], seq_length=LENGTH, seed=3, eval_samples=11, mask_documents=True)


@pytest.fixture
def make_loader(dataset: BlendedDataset) -> Iterator[Callable[..., Loader]]:
    made = []

    def make(rank: int = 0, size: int = 1, *, micro: int = 1, workers: int = 0, **others: Any) -> Loader:
        others.setdefault("dataset", dataset)
        loader = Loader(
            micro_batch_size=micro, data_parallel_rank=rank, data_parallel_size=size, num_workers=workers, **others
        )
        made.append(loader)
        return loader

    yield make
    for loader in made:
        loader.close()


def steps_of(loaders: list[Loader], steps: int, consumed: int = 0) -> list[list[SampleId]]:
    """Samples of each step over all data-parallel ranks, in the order of the global batch."""
    streams = [loader.training(consumed) for loader in loaders]
    num_microbatches = GLOBAL // (len(loaders) * loaders[0].micro_batch_size)
    result = []
    for _ in range(steps):
        step: list[SampleId] = []
        for _ in range(num_microbatches):
            for stream in streams:
                step.extend(sample for sample in next(stream).samples if sample is not None)
        result.append(step)
    for stream in streams:
        stream.close()  # type: ignore[attr-defined]
    return result


@pytest.mark.parametrize(
    ("size", "micro", "workers"), [(1, 2, 0), (1, 8, 2), (2, 1, 0), (2, 4, 2), (4, 2, 1), (8, 1, 0)]
)
def test_a_step_has_the_same_samples_on_every_layout(
    make_loader: Callable[..., Loader], dataset: BlendedDataset, size: int, micro: int, workers: int
) -> None:
    expected = [[dataset.train_id(step * GLOBAL + i) for i in range(GLOBAL)] for step in range(30)]
    loaders = [make_loader(rank, size, micro=micro, workers=workers) for rank in range(size)]
    assert steps_of(loaders, 30) == expected


@pytest.mark.parametrize("size", [1, 2, 4])
def test_going_on_is_starting_at_the_consumed_samples(make_loader: Callable[..., Loader], size: int) -> None:
    whole = steps_of([make_loader(rank, size) for rank in range(size)], 30)
    for done in (1, 7, 29):
        for new_size in (1, 2, 4):
            loaders = [make_loader(rank, new_size, micro=2, workers=1) for rank in range(new_size)]
            assert steps_of(loaders, 30 - done, consumed=done * GLOBAL) == whole[done:]


def test_tokens_are_those_of_the_samples(make_loader: Callable[..., Loader], dataset: BlendedDataset) -> None:
    for batch in islice(make_loader(micro=3, workers=2).training(0), 20):
        assert batch.tokens_bs.shape == (3, LENGTH)
        for row, sample in enumerate(batch.samples):
            assert sample is not None
            assert batch.tokens_bs[row].tolist() == list(range(sample.sample * LENGTH, (sample.sample + 1) * LENGTH))
        assert torch.equal(batch.labels_bs, batch.tokens_bs + 1)
        assert batch.loss_mask_bs.all()


def test_threads_change_nothing(make_loader: Callable[..., Loader]) -> None:
    plain, threaded = make_loader(micro=2), make_loader(micro=2, workers=3)
    for one, other in zip(islice(plain.training(16), 60), islice(threaded.training(16), 60), strict=True):
        assert_same(one, other)
    for one, other in zip(plain.evaluation(), threaded.evaluation(), strict=True):
        assert_same(one, other)


def assert_same(one: Batch, other: Batch) -> None:
    assert one.samples == other.samples
    for name in ("tokens_bs", "labels_bs", "loss_mask_bs", "position_ids_bs", "document_ids_bs"):
        assert torch.equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("multiple", [1, 2, 3])
@pytest.mark.parametrize(("size", "micro"), [(1, 1), (1, 4), (2, 1), (2, 3), (4, 1), (4, 2), (1, 100)])
def test_evaluation_covers_every_held_out_sample_once(
    make_loader: Callable[..., Loader], dataset: BlendedDataset, size: int, micro: int, multiple: int
) -> None:
    seen: list[SampleId] = []
    for rank in range(size):
        loader = make_loader(rank, size, micro=micro, workers=rank % 2, microbatch_multiple=multiple)
        batches = list(loader.evaluation())
        assert len(batches) == loader.num_evaluation_microbatches
        assert len(batches) % multiple == 0
        # Not a whole group more than needed.
        assert (len(batches) - multiple) * micro * size < len(dataset.eval_ids)
        for batch in batches:
            assert batch.tokens_bs.shape == (micro, LENGTH)
            counted = [sample is not None for sample in batch.samples]
            assert batch.loss_mask_bs.tolist() == [[float(count)] * LENGTH for count in counted]
            seen += [sample for sample in batch.samples if sample is not None]
    assert Counter(map(str, seen)) == Counter(map(str, dataset.eval_ids))


def test_evaluation_can_be_repeated(make_loader: Callable[..., Loader]) -> None:
    loader = make_loader(workers=2)
    training = loader.training(0)
    first_step = next(training)
    for one, other in zip(loader.evaluation(), loader.evaluation(), strict=True):
        assert_same(one, other)
    # Training in between is not disturbed.
    assert first_step.samples + next(training).samples == tuple(
        sample for batch in islice(loader.training(0), 2) for sample in batch.samples
    )


class SlowCorpus:
    """Counts reads that have begun; the first takes longest."""

    def __init__(self, corpus: Any):
        self.fingerprint, self.num_tokens = corpus.fingerprint, corpus.num_tokens
        self.end_of_document, self.corpus = corpus.end_of_document, corpus
        self.reads = 0
        self.lock = threading.Lock()

    def tokens(self, start: int, count: int) -> np.ndarray:
        with self.lock:
            self.reads += 1
            number = self.reads
        time.sleep(0.05 if number == 1 else 0.001)
        return self.corpus.tokens(start, count)


def slow_dataset(memory_corpus: MakeCorpus) -> tuple[BlendedDataset, SlowCorpus]:
    corpus = SlowCorpus(memory_corpus("slow", 2000))
    corpora: Any = {"slow": corpus}
    return BlendedDataset(corpora, None, seq_length=LENGTH, seed=3, eval_samples=0), corpus


def test_order_survives_a_slow_read(make_loader: Callable[..., Loader], memory_corpus: MakeCorpus) -> None:
    dataset, _ = slow_dataset(memory_corpus)
    batches = islice(make_loader(dataset=dataset, workers=4).training(0), 12)
    assert [batch.samples[0] for batch in batches] == [dataset.train_id(number) for number in range(12)]


def test_reading_ahead_is_bounded(make_loader: Callable[..., Loader], memory_corpus: MakeCorpus) -> None:
    dataset, corpus = slow_dataset(memory_corpus)
    next(make_loader(dataset=dataset, workers=2).training(0))
    time.sleep(0.2)
    assert 1 < corpus.reads <= 5


def test_without_threads_nothing_is_read_ahead(make_loader: Callable[..., Loader], memory_corpus: MakeCorpus) -> None:
    dataset, corpus = slow_dataset(memory_corpus)
    next(make_loader(dataset=dataset).training(0))
    assert corpus.reads == 1


def test_closing_ends_the_threads(make_loader: Callable[..., Loader]) -> None:
    loader = make_loader(workers=3)
    next(loader.training(0))
    assert any(thread.name.startswith("loader") for thread in threading.enumerate())
    loader.close()
    assert not any(thread.name.startswith("loader") for thread in threading.enumerate())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_file_is_named(
    make_loader: Callable[..., Loader], byte_corpus: Path, tmp_path: Path, workers: int
) -> None:
    prefix = tmp_path / "damaged"
    for suffix in ("bin", "idx", "json", "crc"):
        Path(f"{prefix}.{suffix}").write_bytes(Path(f"{byte_corpus}.{suffix}").read_bytes())
    with Path(f"{prefix}.bin").open("r+b") as stream:
        stream.seek(4 * 1000)
        stream.write(b"\x7f")
    dataset = open_dataset([str(prefix)], seq_length=64, seed=1, eval_samples=4, vocab_size=257)
    batches = make_loader(dataset=dataset, workers=workers).training(0)
    with pytest.raises(DataError) as caught:
        # The damaged block holds a good part of the corpus: an epoch meets it.
        list(islice(batches, dataset.train_counts[0]))
    assert f"{prefix}.bin: block 0" in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_cut_while_open_is_named(
    make_loader: Callable[..., Loader], byte_corpus: Path, tmp_path: Path, workers: int
) -> None:
    prefix = tmp_path / "cut"
    for suffix in ("bin", "idx", "json", "crc"):
        Path(f"{prefix}.{suffix}").write_bytes(Path(f"{byte_corpus}.{suffix}").read_bytes())
    dataset = open_dataset([str(prefix)], seq_length=64, seed=1, eval_samples=4, vocab_size=257)
    with Path(f"{prefix}.bin").open("r+b") as stream:
        stream.truncate(100)
    with pytest.raises(DataError, match=r"cut\.bin"):
        next(make_loader(dataset=dataset, workers=workers).training(0))
