"""What a progress bar shows; importing rich takes longer than most commands, so only terminals pay for it."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
)
from rich.progress import Progress as RichProgress
from rich.text import Text

from data_tools.io.progress import BYTES, Progress


class RateColumn(ProgressColumn):
    """What is counted, a second, over the last half minute; at the end, over the whole time."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        """Empty before the first piece."""
        done = task.completed - task.fields["begun"]
        seconds = task.finished_time if task.finished else task.elapsed
        speed = done / seconds if seconds else 0.0
        if not task.finished:
            speed = task.speed or speed
        amount = decimal(int(speed)) if self._unit == BYTES else f"{speed:,.0f}"
        return Text(f"{amount}/s" if done and speed else "", style="progress.data.speed")


class LeftColumn(ProgressColumn):
    """Time left, and at the end the time it took."""

    def render(self, task: Task) -> Text:
        """Empty until it can be estimated."""
        seconds = task.finished_time if task.finished else task.time_remaining
        if seconds is None:
            return Text("")
        minutes, rest = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        clock = f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
        return Text(f"took {clock}" if task.finished else f"{clock} left", style="progress.remaining")


@contextmanager
def shown(title: str, total: int, unit: str = BYTES, begun: int = 0) -> Iterator[Progress]:
    """A bar on stderr while the block runs; full at its end unless it raises.

    Args:
        title: what is being done.
        total: how much there is to do, at least 1.
        unit: what is counted.
        begun: where the bar begins.
    """
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        *((DownloadColumn(),) if unit == BYTES else (MofNCompleteColumn(), TextColumn(unit))),
        RateColumn(unit),
        LeftColumn(),
    )
    with RichProgress(*columns, console=Console(stderr=True)) as rich:
        task = rich.add_task(title, total=total, completed=begun, begun=begun)

        class _Bar:
            def advance(self, amount: int) -> None:
                # The last hundredth is filled by the block's end.
                done = rich.tasks[0].completed
                rich.update(task, completed=max(done, min(done + amount, total * 99 // 100)))

        yield _Bar()
        rich.update(task, completed=total)
