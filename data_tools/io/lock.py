"""Locks on files: one writer at a time for a corpus, a run's folder or a pipeline's output, or several that share."""

import errno
import fcntl
import os
import socket
from pathlib import Path

from data_tools.io.atomic_file import open_unfollowed
from data_tools.io.system_errors import naming

_HOLDER_BYTES = 200


class HeldError(Exception):
    """Another process holds the lock.

    Attributes:
        holder: what it wrote into the file: process and host.
    """

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(f"{path}: is held by {holder}")
        self.holder = holder


class FileLock:
    """A lock on a file, held from now on; the kernel gives it back when the process ends, however it ends.

    Args:
        path: the file, which is created; it says who holds it. A symbolic link is not followed.
        shared: whether others that share it too may hold it at the same time.
        holder: what the file says; None: this process and its host.
    Raises:
        HeldError: another process holds it.
        PathError: ``path`` is a symbolic link or no plain file.
        OSError: the file cannot be created or locked.
    """

    def __init__(self, path: Path, *, shared: bool = False, holder: str | None = None) -> None:
        self.path = path
        self._descriptor = _acquire(path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        holder = holder or f"process {os.getpid()} on {socket.gethostname()}"
        try:
            with naming(path):
                os.ftruncate(self._descriptor, 0)
                os.pwrite(self._descriptor, holder.encode(), 0)
        except OSError:
            self.release()
            raise

    def still_held(self) -> bool:
        """Whether the locked file is still the one of this name: not after it or its folder was removed or replaced.

        Another process may then hold a lock of the same name.
        """
        return self._descriptor >= 0 and _is_named(self.path, self._descriptor)

    def release(self, *, remove: bool = False) -> None:
        """Gives the lock back; a second call does nothing.

        Args:
            remove: also remove the file, if it is still ours.
        """
        if self._descriptor < 0:
            return
        # Removed while it is held: whoever opened it before sees in _acquire that the name is gone.
        if remove and self.still_held():
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = -1


def _acquire(path: Path, kind: int) -> int:
    while True:
        descriptor = open_unfollowed(path, os.O_RDWR | os.O_CREAT)
        try:
            with naming(path):
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, _HOLDER_BYTES, 0).decode("utf-8", errors="replace")
            os.close(descriptor)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise HeldError(path, _printable(holder) or "another process") from error
        if _is_named(path, descriptor):
            return descriptor
        os.close(descriptor)


def _printable(text: str) -> str:
    """Without what a terminal would take for a command."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _is_named(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except OSError:
        return False
