"""A file that is hashed while it is written, on its way to the disk all the while."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from data_tools.io.background_sync import BackgroundSync
from data_tools.io.direct_file import DirectFile
from qwen_megatron.checkpoint.manifest import FileEntry
from qwen_megatron.errors import CheckpointError

# Hashing and writing leave the interpreter lock; below this, handing over takes longer than hashing.
WORTH_A_THREAD_BYTES = 1 << 19
PIECE_BYTES = BackgroundSync.piece_bytes


class Digest(Protocol):
    """What hashlib's objects do."""

    def update(self, data: Any, /) -> None:
        """Takes in more bytes."""

    def hexdigest(self) -> str:
        """The hash of all bytes so far, in hex."""


class HashedFile:
    """Writes strictly forward; other threads hash and wait for the disk while this one writes.

    Args:
        path: Created, or cut to nothing.
        new_digest: Makes the hash; sha256 for everything that is kept.
    Attributes:
        error: What the first method that failed raised.
    Raises:
        CheckpointError: from every method, naming the file and what the system says (no space, no permission).
    """

    def __init__(self, path: Path, new_digest: Callable[[], Digest] = hashlib.sha256):
        self.path = path
        self.size = 0
        self.digest = new_digest()
        self.hasher = ThreadPoolExecutor(1)
        self.error: CheckpointError | None = None
        try:
            self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise self.failure(error) from error
        self.sync = BackgroundSync(self.descriptor)

    def write(self, data: Any) -> int:
        """Appends the bytes of any buffer; all of them have been hashed and written when it returns."""
        view = memoryview(data).cast("B")
        if len(view) < WORTH_A_THREAD_BYTES:
            self.digest.update(view)
            self.put(view)
            return len(view)
        hashed = self.hasher.submit(self.digest.update, view)
        try:
            for start in range(0, len(view), PIECE_BYTES):
                self.put(view[start : start + PIECE_BYTES])
        finally:
            # The caller's memory may be gone after this call.
            hashed.result()
        return len(view)

    def put(self, piece: memoryview) -> None:
        """Writes all of a piece."""
        try:
            while piece:
                count = os.write(self.descriptor, piece)
                self.size += count
                self.sync.wrote(count)
                piece = piece[count:]
        except OSError as error:
            raise self.failure(error) from error

    def failure(self, error: OSError) -> CheckpointError:
        """Keeps and returns the error that says which file could not be written, and why."""
        reason = os.strerror(error.errno) if error.errno else str(error)
        self.error = CheckpointError(f"{self.path}: cannot be written ({reason}, after {self.size} bytes)")
        return self.error

    def tell(self) -> int:
        """Bytes written."""
        return self.size

    def flush(self) -> None:
        """Nothing is kept back."""

    def close(self) -> None:
        """Brings the file to the disk and closes it."""
        if self.descriptor < 0:
            return
        try:
            self.sync.wait()
            os.fsync(self.descriptor)
        except OSError as error:
            raise self.failure(error) from error
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Gives up the file as it is."""
        if self.descriptor >= 0:
            self.sync.end()
            os.close(self.descriptor)
            self.descriptor = -1
            self.hasher.shutdown()

    @property
    def entry(self) -> FileEntry:
        """Of what has been written."""
        return FileEntry(self.size, self.digest.hexdigest())


class DirectHashedFile:
    """The same for a file that nobody reads soon: written past the page cache, and hashed on the way.

    Args:
        path: Created, or cut to nothing.
        new_digest: Makes the hash.
    Attributes:
        error: What the first method that failed raised.
    Raises:
        CheckpointError: from every method, naming the file and what the system says (no space, no permission).
    """

    def __init__(self, path: Path, new_digest: Callable[[], Digest] = hashlib.sha256):
        self.path = path
        self.size = 0
        self.digest = new_digest()
        self.error: CheckpointError | None = None
        self.file: DirectFile | None = None
        with self.named():
            self.file = DirectFile(path, self.digest.update)

    def write(self, data: Any) -> int:
        """Appends the bytes of any buffer; they are on their way to the disk when it returns."""
        assert self.file is not None
        view = memoryview(data).cast("B")
        with self.named():
            self.file.write(view)
        self.size += len(view)
        return len(view)

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Keeps the error of a block, and says which file could not be written."""
        try:
            yield
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            self.error = CheckpointError(f"{self.path}: cannot be written ({reason}, after {self.size} bytes)")
            raise self.error from error

    def tell(self) -> int:
        """Bytes taken."""
        return self.size

    def flush(self) -> None:
        """Nothing is kept back for long."""

    def close(self) -> None:
        """Brings the file to the disk and closes it."""
        if self.file is None:
            return
        try:
            with self.named():
                self.file.finish()
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Gives up the file as it is."""
        if self.file is not None:
            self.file.close()
            self.file = None

    @property
    def entry(self) -> FileEntry:
        """Of what has been written."""
        return FileEntry(self.size, self.digest.hexdigest())
