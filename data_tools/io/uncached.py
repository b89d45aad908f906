"""Large files that are read or written once, without filling the memory with their pages.

A page of a file takes memory that the kernel must find first. On a virtual machine whose host must give it, that is
most of the time: writing 2 GiB took 7 s, with the same few pages used again and again 1.3 s.
"""

import errno
import os

# Of Linux 6.14 and later: pages that this read has brought in go as soon as they are copied, others stay.
_RWF_DONTCACHE = 0x80
# What kernels and file systems answer that do not know it.
_UNKNOWN_FLAG = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


def read_into(descriptor: int, target: memoryview, start: int, *, uncached: bool = False) -> None:
    """Reads the bytes of a file from ``start`` on into all of ``target``.

    Args:
        descriptor: of the file.
        target: bytes.
        start: in the file.
        uncached: whether pages that are not in memory yet are not kept there, where the system can do that.
    Raises:
        OSError: the file cannot be read, or ends before.
    """
    flags = _RWF_DONTCACHE if uncached else 0
    while target:
        try:
            count = os.preadv(descriptor, [target], start, flags)
        except OSError as error:
            if not flags or error.errno not in _UNKNOWN_FLAG:
                raise
            flags = 0
            continue
        if count == 0:
            raise OSError("it has become shorter")
        target, start = target[count:], start + count


def drop_from_cache(descriptor: int) -> None:
    """Gives back the memory of those pages of a file that are on the disk, where the system has a call for it."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
