"""Brings a file to the disk while it is still being written.

The kernel would keep hundreds of megabytes to itself, and the wait for the disk would begin after the last of them.
"""

import os
from concurrent.futures import Future, ThreadPoolExecutor

from data_tools.io.uncached import drop_from_cache

_SYNC_BYTES = 64 << 20


class BackgroundSync:
    """Lets the disk work on what was written, while the caller makes what comes next; at most two stretches wait.

    Args:
        descriptor: of an open file. It must stay open until `end`.
        sync_bytes: after how many bytes the disk is asked.
        keep_cached: whether what is on the disk stays in memory too; False where nobody reads it soon.
    """

    piece_bytes = 8 << 20

    def __init__(self, descriptor: int, sync_bytes: int = _SYNC_BYTES, *, keep_cached: bool = True):
        self._descriptor = descriptor
        self._keep_cached = keep_cached
        self._sync_bytes = sync_bytes
        self._unsynced = 0
        self._pool = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None

    def wrote(self, count: int) -> None:
        """``count`` more bytes were written.

        Raises:
            OSError: the disk could not take what was written before.
        """
        self._unsynced += count
        if self._unsynced >= self._sync_bytes:
            self._unsynced = 0
            self.wait()
            self._pending = self._pool.submit(self._sync)

    def _sync(self) -> None:
        os.fdatasync(self._descriptor)
        if not self._keep_cached:
            drop_from_cache(self._descriptor)

    def wait(self) -> None:
        """Waits for what the disk has been asked for.

        Raises:
            OSError: the disk could not take it.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def end(self) -> None:
        """Ends the thread; what was written since the last stretch is not waited for."""
        self._pool.shutdown()
