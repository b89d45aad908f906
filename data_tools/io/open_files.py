"""The limit of open files: raised as far as the system lets us, before many files are opened."""

import os
import resource
from pathlib import Path

from data_tools.errors import DataError

# For everything that is not counted: libraries, sockets of other ranks, files of a checkpoint.
_SPARE = 256
# Of `files_to_keep_open`: tasks that may be threads of one process, and files that they all may have open.
_TASKS_AT_ONCE = 64
_MOST_OPEN = 1 << 20


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


def files_to_keep_open(wanted: int) -> int:
    """How many files a task may keep open, ``wanted`` at most; the soft limit is raised if that helps.

    A small part of what the limit allows: as many tasks as a machine has cores may be threads of this process.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_OPEN if hard == resource.RLIM_INFINITY else min(hard, _MOST_OPEN)
    needed = _SPARE + wanted * _TASKS_AT_ONCE
    if soft != resource.RLIM_INFINITY and soft < min(needed, most):
        soft = min(needed, most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return wanted
    return min(wanted, max(soft - _SPARE, 0) // _TASKS_AT_ONCE)
