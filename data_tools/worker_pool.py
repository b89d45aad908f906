"""Batches through a pool of processes, results in the order of the batches.

Each worker has a pipe of its own and at most one batch. A worker that dies closes its pipe, a parent that dies closes
them all, so neither waits for the other for ever (concurrent.futures can: its queue thread stays blocked in a large
write to a worker that was killed).
"""

import multiprocessing
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait

from data_tools.batch_encoder import BatchEncoder, EncodedBatch, EncodingSettings, LineBatch
from data_tools.errors import DataError

# Results that wait for an earlier batch are held in memory; one slow batch stops the others after this many.
_BATCHES_AHEAD_PER_WORKER = 4


def encoded_batches(settings: EncodingSettings, batches: Iterable[LineBatch], workers: int) -> Iterator[EncodedBatch]:
    """Encodes every batch, in this process or in ``workers`` others.

    Args:
        settings: how to encode.
        batches: what to encode; read only a few batches ahead of the results.
        workers: 1 for this process.
    Raises:
        DataError: a record breaks the run, or a worker process was killed (for lack of memory, most often).
    """
    if workers == 1:
        encoder = BatchEncoder(settings)
        yield from map(encoder.encode, batches)
        return
    pool: list[_Worker] = []
    try:
        for _ in range(workers):
            pool.append(_Worker(settings))
        yield from _distribute(pool, iter(batches))
    finally:
        for worker in pool:
            worker.stop()


def _distribute(pool: list["_Worker"], batches: Iterator[LineBatch]) -> Iterator[EncodedBatch]:
    limit = _BATCHES_AHEAD_PER_WORKER * len(pool)
    idle = deque(pool)
    busy: dict[Connection, tuple[_Worker, int]] = {}
    results: dict[int, EncodedBatch] = {}
    num_sent = num_yielded = 0
    upcoming = next(batches, None)
    while upcoming is not None or busy:
        while upcoming is not None and idle and num_sent - num_yielded < limit:
            worker = idle.popleft()
            worker.send(upcoming)
            busy[worker.connection] = (worker, num_sent)
            num_sent += 1
            upcoming = next(batches, None)  # Read while the workers are at work.
        for connection in wait(list(busy)):
            assert isinstance(connection, Connection)
            worker, number = busy.pop(connection)
            results[number] = worker.receive()
            idle.append(worker)
        while num_yielded in results:
            yield results.pop(num_yielded)
            num_yielded += 1


class _Worker:
    """A process that encodes the batches it is sent, one at a time."""

    def __init__(self, settings: EncodingSettings) -> None:
        # Spawned, not forked: a forked child of a process with Rust threads may hang.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(settings, theirs), daemon=True)
        # Ctrl-C reaches the whole process group; the parent alone decides what it means. The mask is inherited; the
        # tracker is started first because starting it unblocks the signal.
        resource_tracker.ensure_running()
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)
        theirs.close()

    def send(self, batch: LineBatch) -> None:
        try:
            self.connection.send(batch)
        except OSError as error:
            raise self._died() from error

    def receive(self) -> EncodedBatch:
        try:
            result = self.connection.recv()
        except (EOFError, OSError) as error:
            raise self._died() from error
        if isinstance(result, DataError):
            raise result
        assert isinstance(result, EncodedBatch)
        return result

    def stop(self) -> None:
        self.connection.close()
        self._process.terminate()
        self._process.join()

    def _died(self) -> DataError:
        try:
            if self.connection.poll() and isinstance(error := self.connection.recv(), DataError):
                return error
        except (EOFError, OSError):
            pass  # It left no word.
        self._process.join()
        code = self._process.exitcode or 0
        if code >= 0:
            return DataError(f"a worker process ended with status {code}; what it printed above says why")
        return DataError(
            f"a worker process was killed by signal {-code}, most often for lack of memory; use fewer --workers or a "
            "smaller --max-document-bytes"
        )


def _work(settings: EncodingSettings, connection: Connection) -> None:
    try:
        encoder = BatchEncoder(settings)
        while (batch := _next_batch(connection)) is not None:
            connection.send(encoder.encode(batch))
    except DataError as error:
        connection.send(error)
    except ConnectionError:
        return  # The parent has gone and wants no result.


def _next_batch(connection: Connection) -> LineBatch | None:
    try:
        batch = connection.recv()
    except (EOFError, OSError):
        return None  # The parent has gone, perhaps in the middle of a batch.
    assert isinstance(batch, LineBatch)
    return batch
