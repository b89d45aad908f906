"""One job at a time in a run's folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from qwen_megatron.errors import CheckpointError

LOCK = "lock"


@contextlib.contextmanager
def run_lock(directory: Path) -> Iterator[None]:
    """Holds `lock` in a run's folder; the kernel gives it back when the process ends, however it ends.

    Raises:
        CheckpointError: if another job holds it, naming its host and process.
    """
    path = directory / LOCK
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 200, 0).decode("utf-8", errors="replace") or "another process"
            raise CheckpointError(
                f"{directory}: {holder} is training in this folder; wait for it, or name another checkpoint.directory"
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        os.close(descriptor)
