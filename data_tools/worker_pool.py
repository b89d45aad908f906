"""Batches through a pool of processes, results in the order of the batches."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from data_tools.batch_encoder import BatchEncoder, EncodedBatch, EncodingSettings, LineBatch, encode_in_worker
from data_tools.errors import DataError

_BATCHES_AHEAD_PER_WORKER = 2


def encoded_batches(settings: EncodingSettings, batches: Iterable[LineBatch], workers: int) -> Iterator[EncodedBatch]:
    """Encodes every batch, in this process or in ``workers`` others.

    Args:
        settings: how to encode.
        batches: what to encode; read only a few batches ahead of the results.
        workers: 1 for this process.
    Raises:
        DataError: a record breaks the run, or a worker process was killed (out of memory, most often).
    """
    if workers == 1:
        encoder = BatchEncoder(settings)
        for batch in batches:
            yield encoder.encode(batch)
        return
    # Spawned, not forked: a forked child of a process with Rust threads may hang.
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker)
    waiting: deque[Future[EncodedBatch]] = deque()
    try:
        for batch in batches:
            waiting.append(pool.submit(encode_in_worker, settings, batch))
            if len(waiting) > _BATCHES_AHEAD_PER_WORKER * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process was killed, most often for lack of memory; use fewer --workers or a smaller "
            "--max-document-bytes"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    # Ctrl-C reaches the whole process group; the parent alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
