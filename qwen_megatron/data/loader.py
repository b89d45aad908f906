"""Micro-batches of one data-parallel rank, read ahead by a few threads of the ranks that read.

Threads, not processes: a sample is a read from a file and a checksum, both outside of the interpreter lock. Who reads,
and how the others get what they need: docs/design/010-data-reading.md.
"""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch.distributed as dist

from qwen_megatron.data.batch import Batch, blank_batch
from qwen_megatron.data.protocol import BatchShape, Dataset, Needs
from qwen_megatron.data.sharing import ALL, READER, SharedBatches

# What one stream may hold of batches that were read and not yet asked for.
READ_AHEAD_BYTES = 256 * 2**20


class Loader:
    """The samples of consecutive steps, read by one rank of each group that needs them.

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
        read_ahead: Micro-batches that may be read before they are asked for, such as those of a step; never more than
            `READ_AHEAD_BYTES` of them. None for two a thread.
        group: Ranks that take the same micro-batches in the same order, for tensors of the host; its first rank reads
            and sends. None: this rank reads for itself.
        needs: What this rank's pipeline stage looks at; the same on all ranks of the group. The rest of a batch is
            zeros.
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
        read_ahead: int | None = None,
        group: dist.ProcessGroup | None = None,
        needs: Needs = ALL,
    ):
        self.dataset = dataset
        self.micro_batch_size = micro_batch_size
        self.rank = data_parallel_rank
        self.data_parallel_size = data_parallel_size
        self.microbatch_multiple = microbatch_multiple
        self.group = None if group is None or group.size() == 1 else group
        self.needs = needs
        reads = self.group is None or self.group.rank() == READER
        # Threads start with their first work: a rank that never reads has none.
        self.workers = ThreadPoolExecutor(num_workers, thread_name_prefix="loader") if num_workers and reads else None
        self.first_ahead = 2 * num_workers
        self.ahead = self.first_ahead if read_ahead is None else read_ahead

    @property
    def shape(self) -> BatchShape:
        """Of the micro-batches."""
        return self.dataset.shape(self.micro_batch_size)

    def training(self, consumed_samples: int) -> Iterator[Batch]:
        """Micro-batches from sample number `consumed_samples` on, without end; see `stream`."""
        return self.stream(self.training_ids(consumed_samples))

    def training_ids(self, consumed_samples: int) -> Iterator[list[Any | None]]:
        """Ids of this rank's training micro-batches from a sample number on, without end."""
        while True:
            first = consumed_samples + self.rank * self.micro_batch_size
            yield [self.dataset.train_id(number) for number in range(first, first + self.micro_batch_size)]
            consumed_samples += self.micro_batch_size * self.data_parallel_size

    def evaluation(self) -> Iterator[Batch]:
        """All held-out samples once; every rank gets as many micro-batches, filled up with rows that do not count."""
        stride = self.micro_batch_size * self.data_parallel_size
        first = self.rank * self.micro_batch_size
        starts = range(first, self.num_evaluation_microbatches * stride, stride)
        return self.stream(self.held_out_ids(start) for start in starts)

    def held_out_ids(self, start: int) -> list[Any | None]:
        """A micro-batch of held-out samples from place `start` on; None beyond the last."""
        ids: list[Any | None] = list(self.dataset.eval_ids[start : start + self.micro_batch_size])
        return ids + [None] * (self.micro_batch_size - len(ids))

    @property
    def num_evaluation_microbatches(self) -> int:
        """Micro-batches of `evaluation` on every rank."""
        group = self.micro_batch_size * self.data_parallel_size * self.microbatch_multiple
        return -(-len(self.dataset.eval_ids) // group) * self.microbatch_multiple

    def stream(self, ids: Iterator[list[Any | None]]) -> Iterator[Batch]:
        """Micro-batches of samples, by whichever way this rank gets them.

        Taking one is a collective over the group, if there is one: its ranks take as many of a stream as each other,
        and of several streams in the same order.

        Raises:
            DataError: if a file is damaged, on the rank that reads it; `ReaderDataError` on those it reads for.
        """
        if self.needs.nothing:
            first = next(ids, None)
            if first is None:
                return
            ids = itertools.chain([first], ids)
            if self.dataset.batch_without_tokens(first) is not None:
                yield from self.unread(ids)
                return
        if self.group is None:
            yield from self.read_ahead(ids)
            return
        rows, length = self.dataset.rows_per_sample, self.dataset.seq_length
        blank = functools.partial(blank_batch, seq_length=length, rows_per_sample=rows)
        shared = SharedBatches(self.group, blank, self.needs)
        if self.group.rank() == READER:
            yield from shared.send(self.read_ahead(ids))
        else:
            yield from shared.receive(ids)

    def unread(self, ids: Iterator[list[Any | None]]) -> Iterator[Batch]:
        """Makes micro-batches that say which samples they stand for and hold no tokens."""
        for group in ids:
            batch = self.dataset.batch_without_tokens(group)
            assert batch is not None, "whether a stage without tokens needs to read may not depend on the samples"
            yield batch

    def read(self, ids: list[Any | None]) -> Batch:
        """What this rank's stage looks at of a micro-batch."""
        return self.dataset.batch(ids).keeping(self.needs)

    def read_ahead(self, ids: Iterator[list[Any | None]]) -> Iterator[Batch]:
        """The micro-batches of these ids in their order, read by the workers before they are asked for."""
        if self.workers is None:
            yield from map(self.read, ids)
            return
        pending: deque[Future[Batch]] = deque()
        # How large a batch is, is known from the first one.
        limit = min(self.ahead, self.first_ahead)
        for group in ids:
            pending.append(self.workers.submit(self.read, group))
            while len(pending) > limit:
                batch = pending.popleft().result()
                limit = min(self.ahead, max(1, READ_AHEAD_BYTES // max(1, batch.size_bytes)))
                yield batch
        while pending:
            yield pending.popleft().result()

    def close(self) -> None:
        """Stops the threads; what they had read ahead is forgotten."""
        if self.workers is not None:
            self.workers.shutdown(wait=True, cancel_futures=True)
