"""Disks that are full."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """Writing beyond `limit` bytes of a file fails, as on a full disk, with EFBIG instead of ENOSPC.

    Nothing is compiled to disk meanwhile: Python would keep as much of a module as there was room for, and every later
    process would find that.
    """
    before, wrote_none = resource.getrlimit(resource.RLIMIT_FSIZE), sys.dont_write_bytecode
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = wrote_none
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
