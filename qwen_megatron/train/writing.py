"""Writing into a run's folder: what goes wrong names the file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from qwen_megatron.errors import PlatformError


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around whatever writes a file.

    Raises:
        PlatformError: naming the file, if the disk is full or the folder cannot be written to. A start helps as soon
            as that is mended, so the record of the failure does not refuse it.
    """
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise PlatformError(
            f"{path}: cannot be written ({reason}); mend that and start again: the run goes on from its newest "
            "checkpoint"
        ) from error


def append_whole(stream: BinaryIO, content: bytes) -> None:
    """Writes all of it to an unbuffered stream: nothing is kept back that closing would try to write once more."""
    while content:
        content = content[stream.write(content) :]
