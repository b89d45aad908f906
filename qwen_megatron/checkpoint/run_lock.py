"""One job at a time in a run's folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from data_tools.errors import PathError
from data_tools.io.lock import FileLock, HeldError
from data_tools.io.system_errors import explained
from qwen_megatron.errors import CheckpointError

LOCK = "lock"


@contextlib.contextmanager
def run_lock(directory: Path) -> Iterator[FileLock]:
    """Holds `lock` in a run's folder; the kernel gives it back when the process ends, however it ends.

    Raises:
        CheckpointError: if another job holds it, naming its host and process, or if it is a symbolic link.
    """
    try:
        lock = FileLock(directory / LOCK)
    except HeldError as error:
        raise CheckpointError(
            f"{directory}: {error.holder} is training in this folder; wait for it, or name another checkpoint.directory"
        ) from error
    except PathError as error:
        raise CheckpointError(str(error)) from error
    except OSError as error:
        raise CheckpointError(explained(error)) from error
    try:
        yield lock
    finally:
        # The file stays: the next job opens the same one.
        lock.release()


def check_still_held(lock: FileLock | None) -> None:
    """Before anything is saved: the folder must still be the one that was locked.

    Args:
        lock: From `run_lock`; None where nobody has locked anything.
    Raises:
        CheckpointError: if the folder was removed, moved or replaced. Another job may be in it.
    """
    if lock is not None and not lock.still_held():
        raise CheckpointError(
            f"{lock.path.parent}: was removed, moved or replaced while this job trained in it, and may be another "
            "job's now; nothing more is saved. Put it back, or start with another checkpoint.directory"
        )
