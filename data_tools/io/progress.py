"""A progress bar on a terminal, silence elsewhere."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

# Of the logger whose level says whether progress is shown: --quiet raises it above warnings.
PROGRESS = "data_tools.io.progress"
BYTES = "bytes"


class Progress(Protocol):
    """Is told how much is done, in bytes unless the bar has another unit."""

    def advance(self, amount: int) -> None:
        """``amount`` more are done."""
        ...


class SilentProgress:
    """Shows nothing."""

    def advance(self, amount: int) -> None:
        """See `Progress.advance`."""


def shows_progress() -> bool:
    """Whether bars and lines of progress are wanted."""
    return logging.getLogger(PROGRESS).isEnabledFor(logging.WARNING)


@contextmanager
def progress_bar(title: str, total: int, *, unit: str = BYTES, begun: int = 0) -> Iterator[Progress]:
    """A bar with percentage, rate and estimated end while the block runs, if stderr is a terminal.

    It ends at 100 % when the block ends without an error: what is told meanwhile may be rough, more or less than the
    total.

    Args:
        title: what is being done.
        total: bytes to do, or whatever `unit` says; where there is nothing to do there is no bar.
        unit: what is counted.
        begun: of the total, was done before the block: the bar begins there, and its rate counts the rest.
    """
    if total <= begun or not shows_progress() or not sys.stderr.isatty():
        yield SilentProgress()
        return
    from data_tools.io.progress_columns import shown

    with shown(title, total, unit, begun) as progress:
        yield progress
