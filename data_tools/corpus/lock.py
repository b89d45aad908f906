"""One writer at a time for a corpus."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_tools.corpus.sidecar import corpus_path
from data_tools.errors import DataError
from data_tools.io.lock import FileLock, HeldError


@contextmanager
def corpus_lock(prefix: str | Path, *, shared: bool = False) -> Iterator[FileLock]:
    """Holds PREFIX.lock for as long as the block runs.

    Args:
        prefix: what is written.
        shared: whether others that share it too may work at the same time; the file then stays.
    Raises:
        DataError: another process holds it (named by host and process id, or as a run with ``--shard``), or it is a
            symbolic link.
        OSError: the folder is missing or cannot be written to, or another user's lock is in it.
    """
    path = corpus_path(prefix, "lock")
    try:
        lock = FileLock(path, shared=shared, holder="a run with --shard" if shared else None)
    except HeldError as error:
        raise DataError(
            f"{path}: {error.holder} is writing this corpus; wait for it or choose another prefix"
        ) from error
    try:
        yield lock
    finally:
        lock.release(remove=not shared)
