"""The ranks of one replica in one process: who reads how many bytes for a step, and what is held when it starts."""

from __future__ import annotations

import contextlib
import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from qwen_megatron.data import sharing
from qwen_megatron.data.batch import Batch
from qwen_megatron.data.loader import Loader
from qwen_megatron.data.pretraining.dataset import BlendedDataset, open_dataset
from qwen_megatron.data.protocol import Dataset, Needs
from qwen_megatron.data.sharing import ALL

SEQ = 2048


@dataclass
class StandInGroup:
    """A group of ranks that take turns: the first leaves its messages for the others."""

    own_rank: int
    own_size: int
    messages: list[torch.Tensor]
    heard: int = 0

    def rank(self) -> int:
        return self.own_rank

    def size(self) -> int:
        return self.own_size


@contextlib.contextmanager
def in_turns() -> Iterator[None]:
    """While it is open, broadcasts go over a `StandInGroup`."""

    def broadcast(message: torch.Tensor, *, group_src: int, group: StandInGroup) -> None:
        if group.rank() == group_src:
            group.messages.append(message.clone())
        else:
            message.copy_(group.messages[group.heard])
            group.heard += 1

    before = sharing.dist
    stand_in: Any = SimpleNamespace(broadcast=broadcast, get_global_rank=lambda group, rank: rank)
    sharing.dist = stand_in
    try:
        yield
    finally:
        sharing.dist = before


@contextlib.contextmanager
def counted_reads() -> Iterator[list[int]]:
    """The bytes of every read from a file by position."""
    reads: list[int] = []
    pread = os.pread

    def counted(descriptor: int, count: int, position: int) -> bytes:
        content = pread(descriptor, count, position)
        reads.append(len(content))
        return content

    os.pread = counted
    try:
        yield reads
    finally:
        os.pread = pread


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Ranks of one replica."""

    tensor: int = 1
    pipeline: int = 1
    context: int = 1

    @property
    def ranks(self) -> int:
        return self.tensor * self.pipeline * self.context

    def __str__(self) -> str:
        return f"TP {self.tensor} x PP {self.pipeline} x CP {self.context}"


def opened(prefix: Path, *, mask_documents: bool = False) -> BlendedDataset:
    return open_dataset(
        [str(prefix)], seq_length=SEQ, seed=1, eval_samples=8, vocab_size=1000, mask_documents=mask_documents
    )


def bytes_of_a_step(
    prefix: Path, layout: Layout, samples: int, *, mask_documents: bool = False, everyone_reads: bool = False
) -> list[int]:
    """Bytes that each rank of a replica reads for a step of one-sample micro-batches, by pipeline stage and rank in it.

    Args:
        prefix: Corpus, opened by each rank for itself.
        layout: Of the replica.
        samples: Micro-batches.
        mask_documents: Whether every stage must know the documents.
        everyone_reads: As it was before: no rank hears of another.
    """
    totals = []
    with in_turns():
        for stage in range(layout.pipeline):
            messages: list[torch.Tensor] = []
            size = layout.tensor * layout.context
            for rank in range(size):
                group: Any = None if everyone_reads else StandInGroup(rank, size, messages)
                loader = Loader(
                    opened(prefix, mask_documents=mask_documents),
                    micro_batch_size=1,
                    data_parallel_rank=0,
                    data_parallel_size=1,
                    num_workers=0,
                    group=group,
                    needs=ALL if everyone_reads else Needs(tokens=stage == 0, targets=stage == layout.pipeline - 1),
                )
                with counted_reads() as reads:
                    deque(islice(loader.training(0), samples), maxlen=0)
                totals.append(sum(reads))
    return totals


@dataclass
class WatchedDataset(Dataset):
    """Another dataset's batches, each after a delay; knows which of them are still held."""

    inner: Dataset
    delay: float = 0.0
    made: list[weakref.ref[Batch]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.seq_length, self.eval_ids = self.inner.seq_length, self.inner.eval_ids

    def train_id(self, number: int) -> Any:
        return self.inner.train_id(number)

    def batch(self, ids: Sequence[Any | None]) -> Batch:
        time.sleep(self.delay)
        batch = self.inner.batch(ids)
        self.made.append(weakref.ref(batch))
        return batch

    def sources(self, consumed_samples: int) -> dict[str, dict[str, Any]]:
        return self.inner.sources(consumed_samples)

    @property
    def held_bytes(self) -> int:
        return sum(batch.size_bytes for made in self.made if (batch := made()) is not None)


@dataclass(frozen=True, kw_only=True)
class StepStart:
    """What one way to begin a step costs.

    Attributes:
        first_seconds: From asking to the first forward, with nothing read before.
        reader_bytes: Held by the rank that reads when a step starts and all that may be read ahead was.
        other_bytes: Held by a rank that it reads for.
    """

    first_seconds: float
    reader_bytes: int
    other_bytes: int


def wait_until_calm(dataset: WatchedDataset) -> None:
    count = -1
    while count != len(dataset.made):
        count = len(dataset.made)
        time.sleep(0.05 + 10 * dataset.delay)


def start_of_a_step(
    prefix: Path, count: int, delay: float, start: Callable[[Iterator[Batch]], Any], **options: Any
) -> StepStart:
    """Begins a step of `count` micro-batches by `start`, which takes of them what the way takes before its forward."""
    dataset = WatchedDataset(opened(prefix), delay)
    loader = Loader(dataset, micro_batch_size=1, data_parallel_rank=0, data_parallel_size=1, num_workers=2, **options)
    batches = loader.training(0)
    began = time.perf_counter()
    held = start(batches)
    first_seconds = time.perf_counter() - began
    del held
    deque(islice(batches, count - 1), maxlen=0)
    held = start(batches)
    wait_until_calm(dataset)
    reader_bytes = dataset.held_bytes
    other_bytes = sum(batch.size_bytes for batch in (held if isinstance(held, list) else [held]))
    loader.close()
    return StepStart(first_seconds=first_seconds, reader_bytes=reader_bytes, other_bytes=other_bytes)
