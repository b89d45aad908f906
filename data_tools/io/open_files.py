"""The limit of open files: raised as far as the system lets us, before many files are opened."""

import os
import resource
from pathlib import Path

from data_tools.errors import DataError

# For everything that is not counted: libraries, sockets of other ranks, files of a checkpoint.
_SPARE = 256


def allow_open_files(count: int, what: str) -> None:
    """Lets this process have ``count`` more files open, by raising its soft limit if that does not do.

    Shells and job schedulers often give 1024 as soft limit and far more as hard limit.

    Args:
        count: files that will be opened and stay open.
        what: they are, for the message, as "500 corpora".
    Raises:
        DataError: the hard limit is below what is needed.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = _num_open() + count + _SPARE
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise DataError(
            f"{what} need {needed} open files, but this process may have {hard}; raise the limit (ulimit -Hn {needed}, "
            f"LimitNOFILE={needed} of the service that starts it), or use fewer and larger files"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _num_open() -> int:
    folder = Path("/proc/self/fd")
    return len(os.listdir(folder)) if folder.is_dir() else 0
