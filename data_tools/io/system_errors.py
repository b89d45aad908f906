"""Errors of the operating system: which file they are about, and what a user can do.

Calls on open files (write, fsync, flock) do not say which file failed; whoever opened it does, with `naming`.
"""

import errno
import os
import pwd
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data_tools.io.plain_text import printable

_ADVICE = {
    errno.ENOSPC: "free some space or choose another folder, and start again",
    errno.EDQUOT: "free some of your quota or choose another folder, and start again",
    errno.EFBIG: "allow larger files (ulimit -f), or choose another file system",
    errno.EROFS: "nothing can be written there; choose another folder",
    errno.ENOENT: "check the name; the folder it is in must exist",
    errno.ENOTDIR: "a part of the path is a file and not a folder; check the name",
    errno.EISDIR: "it is a folder; name a file",
    errno.EEXIST: "it is there already; choose another name",
    errno.ENOTEMPTY: "somebody put files there; move them away or choose another name",
    errno.EBUSY: "it is in use, as the top of a file system for one; choose another name",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "its symbolic links lead in a circle; remove one",
    errno.EMFILE: "allow more open files (ulimit -n), or give fewer at a time",
    errno.ENFILE: "the machine has too many open files; end other programs",
    errno.ENOMEM: "there is not enough memory; end other programs or use a larger machine",
    errno.EIO: "the disk is full or fails; look at the kernel's log",
    errno.ESTALE: "the file server has another folder there now; mount it again",
}
_DENIED = (errno.EACCES, errno.EPERM)


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Around calls that work on the open file ``path``: what the system refuses then carries its name.

    An error that names a file already keeps it.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        if error.errno is None:
            # numpy, which does not say why.
            raise OSError(errno.EIO, str(error), str(path)) from error
        error.filename = str(path)
        raise


@contextmanager
def naming_foreign(path: str | Path) -> Iterator[None]:
    """Around libraries written in Rust, which give the system's error as text: it is raised as an OSError on ``path``.

    Raises:
        OSError: what the system refused.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def explained(error: OSError) -> str:
    """One line: the path, what the system says, what to do."""
    # Of a rename the second name is the one that the user chose, the first is temporary.
    path = error.filename if error.filename2 is None else error.filename2
    named = isinstance(path, str | bytes | os.PathLike)
    parts = [error.strerror or str(error)]
    if error.errno in _DENIED:
        parts.append(_who_may(Path(os.fsdecode(path))) if named else "you have no right to do this")
    elif error.errno in _ADVICE:
        parts.append(_ADVICE[error.errno])
    where = f"{os.fsdecode(path)}: " if named else ""
    return printable(where + "; ".join(parts))


def _who_may(path: Path) -> str:
    """Whose a path is that cannot be used, or the folder it would be in."""
    for place in (path, path.parent):
        with suppress(OSError):
            owner = place.stat().st_uid
            if owner == os.geteuid():
                return f"{place} is yours, but its mode or file system forbids it; chmod it or choose another place"
            return f"{place} belongs to {_user(owner)}; ask for the right to use it, or choose another place"
    return "ask its owner for the right to use it, or choose another place"


def _user(number: int) -> str:
    try:
        return f"user {pwd.getpwuid(number).pw_name}"
    except KeyError:
        return f"user {number}"
