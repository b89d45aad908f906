"""Writing a large file past the page cache.

The kernel copies what is written into pages that it must find first, keep account of and give back. Blocks of this
process that the disk reads by itself cost a tenth of that: 0.1 s of processor time for 2 GiB instead of 0.7 to 6.
"""

import contextlib
import errno
import fcntl
import mmap
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from data_tools.io.background_sync import BackgroundSync

BLOCK_BYTES = 4 << 20
# One is filled, one is on its way to the disk, others wait or are looked at.
NUM_BLOCKS = 4
# What file systems answer that cannot pass the page cache by, when a file is opened or only when it is read or written.
NOT_DIRECT = (errno.EINVAL, errno.EOPNOTSUPP)
# Of files that are closed, kept for the next ones: a system that must find pages anew takes longer than the disk.
_MOST_SPARE = 8
# Place in the file, number of bytes and place in memory must be multiples of it; no disk wants more.
ALIGNMENT = 4096


def large_pages(num_bytes: int) -> mmap.mmap:
    """Memory that begins with a page, of large pages where the system has them, which are there sooner."""
    # Shared memory, which this would be otherwise, has no large pages.
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # Advice: a kernel without large pages refuses it, and nothing but speed is lost.
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


class _Block:
    """Memory that is written at once. Its place in the file and in memory are alike in what alignment is about."""

    def __init__(self) -> None:
        memory = large_pages(BLOCK_BYTES)
        self.view, self.memory = memoryview(memory), np.frombuffer(memory, dtype=np.uint8)
        self.work: list[Future[None]] = []
        self.begin(0)

    def begin(self, start: int) -> None:
        """Empties it, to be filled with what belongs to byte ``start`` of the file."""
        self.start = start
        self.first = self.stop = start % ALIGNMENT

    def take(self, view: memoryview) -> int:
        """Fills it; how many bytes had room."""
        count = min(len(view), BLOCK_BYTES - self.stop)
        # Unlike assigning to a memoryview this lets other threads work.
        np.copyto(self.memory[self.stop : self.stop + count], np.frombuffer(view[:count], dtype=np.uint8))
        self.stop += count
        return count

    @property
    def content(self) -> memoryview:
        return self.view[self.first : self.stop]

    def wait(self) -> None:
        """Waits for those who work on it.

        Raises:
            OSError: the disk could not take it.
        """
        for work in self.work:
            work.result()  # An error stays, for whoever waits again.
        self.work.clear()


# Of this process: files come and go, and the next one, of whatever thread, finds the memory of the last one warm.
_spare: list[_Block] = []


def _keep(block: _Block) -> None:
    if len(_spare) < _MOST_SPARE:
        _spare.append(block)


class DirectFile:
    """Takes what is written into blocks, which a thread writes to the disk; where the system cannot do that, as usual.

    Args:
        path: the file.
        look: is called in another thread with what was written, block by block in the order of writing.
        flags: of os.open; as they are, the file is created or cut to nothing.
        num_blocks: as many blocks of memory as there are to be.
    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        look: Callable[[memoryview], None] | None = None,
        *,
        flags: int = os.O_CREAT | os.O_TRUNC,
        num_blocks: int = NUM_BLOCKS,
    ):
        # What lies between the multiples is written through this one.
        self._descriptor = os.open(path, flags | os.O_WRONLY | os.O_CLOEXEC, 0o666)
        try:
            self._direct = open_direct(path, os.O_WRONLY | flags & os.O_NOFOLLOW)
        except BaseException:
            os.close(self._descriptor)
            raise
        self._sync = BackgroundSync(self._descriptor, keep_cached=False)
        self._disk, self._looker = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._look = look
        self._busy: deque[_Block] = deque()
        self._num_blocks, self._most_blocks = 0, num_blocks
        self._filled: _Block | None = None
        self._end = 0
        self._is_closed = False

    def write(self, view: memoryview, start: int | None = None) -> None:
        """Takes bytes, which may be changed afterwards.

        Args:
            view: the bytes.
            start: where in the file they belong; None: behind the last ones.
        Raises:
            OSError: the disk could not take what was written before.
        """
        if start is not None and start != self._end:
            self._hand_over()
            self._end = start
        while view:
            block = self._filled = self._filled or self._free_block()
            count = block.take(view)
            self._end += count
            view = view[count:]
            if block.stop == BLOCK_BYTES:
                self._hand_over()

    def _free_block(self) -> _Block:
        if self._num_blocks < self._most_blocks:
            self._num_blocks += 1
            try:
                block = _spare.pop()
            except IndexError:
                block = _Block()
        else:
            self._busy[0].wait()
            block = self._busy.popleft()
        block.begin(self._end)
        return block

    def _hand_over(self) -> None:
        block, self._filled = self._filled, None
        if block is None:
            return
        block.work.append(self._disk.submit(self._put, block))
        if self._look is not None:
            block.work.append(self._looker.submit(self._look, block.content))
        self._busy.append(block)

    def _put(self, block: _Block) -> None:
        place, content = block.start, block.content
        while content:
            ahead = -place % ALIGNMENT
            whole = (len(content) - ahead) // ALIGNMENT * ALIGNMENT
            if self._direct is not None and not ahead and whole:
                count = self._put_direct(self._direct, content[:whole], place)
            else:
                count = os.pwrite(self._descriptor, content[:ahead] if ahead else content, place)
                self._sync.wrote(count)
            place, content = place + count, content[count:]

    def _put_direct(self, descriptor: int, content: memoryview, place: int) -> int:
        try:
            return os.pwrite(descriptor, content, place)
        except OSError as error:
            if error.errno not in NOT_DIRECT:
                raise
        # The file system has opened the file so, but does not write so.
        os.close(descriptor)
        self._direct = None
        return 0

    def finish(self) -> None:
        """Brings everything to the disk.

        Raises:
            OSError: the disk could not take it.
        """
        self._hand_over()
        while self._busy:
            self._busy[0].wait()
            _keep(self._busy.popleft())
        self._sync.wait()
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Ends the threads and closes the file as it is, once; what was not finished is not waited for."""
        if self._is_closed:
            return
        self._is_closed = True
        for pool in (self._disk, self._looker):
            pool.shutdown(cancel_futures=True)
        self._sync.end()
        for descriptor in (self._descriptor, self._direct):
            if descriptor is not None:
                os.close(descriptor)


def open_direct(path: str | os.PathLike[str], flags: int) -> int | None:
    """A descriptor that passes the page cache by; None where the system has no such thing.

    Raises:
        OSError: the file cannot be opened.
    """
    if not hasattr(os, "O_DIRECT"):
        return None
    try:
        return os.open(path, flags | os.O_CLOEXEC | os.O_DIRECT)
    except OSError as error:
        if error.errno in NOT_DIRECT:
            return None
        raise


def no_longer_direct(descriptor: int) -> bool:
    """Lets the page cache have its part in what is read and written from now on; False if it has already."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    direct = getattr(os, "O_DIRECT", 0)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~direct)
    return bool(flags & direct)
