"""A progress bar on a terminal, silence elsewhere."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """Is told how many bytes are done."""

    def advance(self, amount: int) -> None:
        """``amount`` more bytes are done."""
        ...


class SilentProgress:
    """Shows nothing."""

    def advance(self, amount: int) -> None:
        """See `Progress.advance`."""


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Progress]:
    """A bar with rate and estimated end while the block runs, if stderr is a terminal.

    Args:
        title: what is being done.
        total: bytes to do.
    """
    if not sys.stderr.isatty():
        yield SilentProgress()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=Console(stderr=True)) as rich:
        task = rich.add_task(title, total=total)

        class _Bar:
            def advance(self, amount: int) -> None:
                rich.advance(task, amount)

        yield _Bar()
