"""One writer at a time for a corpus, or several that share the work."""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_tools.errors import DataError
from data_tools.sidecar import corpus_path


@contextmanager
def corpus_lock(prefix: str | Path, *, shared: bool = False) -> Iterator[None]:
    """Holds PREFIX.lock; the kernel gives it back when the process ends, however it ends.

    Args:
        prefix: what is written.
        shared: whether others that share it too may work at the same time; the file then stays.
    Raises:
        DataError: another process holds it (named by host and process id, or as a run with ``--shard``), or the folder
            cannot be written to.
    """
    path = corpus_path(prefix, "lock")
    descriptor = _acquire(path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    try:
        holder = "a run with --shard" if shared else f"process {os.getpid()} on {socket.gethostname()}"
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, holder.encode(), 0)
        yield
    finally:
        if not shared:
            # Removed while it is held: whoever opened it before sees in _acquire that the name is gone.
            path.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(path: Path, kind: int) -> int:
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise DataError(
                f"{path}: cannot be created: {error.strerror}; the folder must exist and be writable"
            ) from (error)
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 200, 0).decode("utf-8", errors="replace")
            os.close(descriptor)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise DataError(f"{path}: cannot be locked: {error.strerror}") from error
            raise DataError(
                f"{path}: {holder or 'another process'} is writing this corpus; wait for it or choose another prefix"
            ) from error
        if _still_named(path, descriptor):
            return descriptor
        os.close(descriptor)


def _still_named(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
