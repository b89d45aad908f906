"""Micro-batches of one data-parallel rank, read ahead by a few threads.

Threads, not processes: a sample is a read from a file and a checksum, both outside of the interpreter lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from qwen_megatron.data.batch import Batch
from qwen_megatron.data.protocol import BatchShape, Dataset


class Loader:
    """Reads the samples of consecutive steps.

    The samples of a step are a function of the step's first sample number alone: step by step the whole job reads the
    same samples on any layout, and going on from a checkpoint is starting at its consumed samples.

    Args:
        dataset: Samples.
        micro_batch_size: Samples a micro-batch.
        data_parallel_rank: This rank's place.
        data_parallel_size: Ranks that share a step's samples.
        num_workers: Threads that read ahead; 0 reads when asked.
        microbatch_multiple: Evaluation is filled up to a multiple of this many micro-batches, which an interleaved
            pipeline needs.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        micro_batch_size: int,
        data_parallel_rank: int,
        data_parallel_size: int,
        num_workers: int,
        microbatch_multiple: int = 1,
    ):
        self.dataset = dataset
        self.micro_batch_size = micro_batch_size
        self.rank = data_parallel_rank
        self.data_parallel_size = data_parallel_size
        self.microbatch_multiple = microbatch_multiple
        self.workers = ThreadPoolExecutor(num_workers, thread_name_prefix="loader") if num_workers else None
        self.ahead = 2 * num_workers

    @property
    def shape(self) -> BatchShape:
        """Of the micro-batches."""
        return self.dataset.shape(self.micro_batch_size)

    def training(self, consumed_samples: int) -> Iterator[Batch]:
        """Micro-batches from sample number `consumed_samples` on, without end."""
        return self.read_ahead(self.training_ids(consumed_samples))

    def training_ids(self, consumed_samples: int) -> Iterator[list[Any | None]]:
        """Ids of this rank's training micro-batches from a sample number on, without end."""
        while True:
            first = consumed_samples + self.rank * self.micro_batch_size
            yield [self.dataset.train_id(number) for number in range(first, first + self.micro_batch_size)]
            consumed_samples += self.micro_batch_size * self.data_parallel_size

    def evaluation(self) -> Iterator[Batch]:
        """All held-out samples once; every rank gets as many micro-batches, filled up with rows that do not count."""
        ids: list[Any | None] = list(self.dataset.eval_ids)
        stride = self.micro_batch_size * self.data_parallel_size
        ids += [None] * (-len(ids) % (stride * self.microbatch_multiple))
        first = self.rank * self.micro_batch_size
        rows = (ids[start + first : start + first + self.micro_batch_size] for start in range(0, len(ids), stride))
        return self.read_ahead(rows)

    @property
    def num_evaluation_microbatches(self) -> int:
        """Micro-batches of `evaluation` on every rank."""
        group = self.micro_batch_size * self.data_parallel_size * self.microbatch_multiple
        return -(-len(self.dataset.eval_ids) // group) * self.microbatch_multiple

    def read_ahead(self, ids: Iterator[list[Any | None]]) -> Iterator[Batch]:
        """The micro-batches of these ids in their order, read by the workers before they are asked for."""
        if self.workers is None:
            yield from map(self.dataset.batch, ids)
            return
        pending: deque[Future[Batch]] = deque()
        for group in ids:
            pending.append(self.workers.submit(self.dataset.batch, group))
            if len(pending) > self.ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def close(self) -> None:
        """Stops the threads; what they had read ahead is forgotten."""
        if self.workers is not None:
            self.workers.shutdown(wait=True, cancel_futures=True)
