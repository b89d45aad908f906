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
        DataError: another process holds it (named by host and process id, or as a run with ``--shard``), it is a
            symbolic link, or the folder cannot be written to.
    """
    path = corpus_path(prefix, "lock")
    try:
        lock = FileLock(path, shared=shared, holder="a run with --shard" if shared else None)
    except HeldError as error:
        raise DataError(
            f"{path}: {error.holder} is writing this corpus; wait for it or choose another prefix"
        ) from error
    except OSError as error:
        raise DataError(
            f"{path}: cannot be created or locked: {error.strerror}; the folder must exist and be writable"
        ) from error
    try:
        yield lock
    finally:
        lock.release(remove=not shared)
