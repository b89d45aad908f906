"""The progress bar of tasks: those that are finished whole, those under way as far as they have come."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from data_tools.engine.executor import UnderWay
from data_tools.engine.task import Task
from data_tools.io.progress import BYTES, Progress, SilentProgress, progress_bar


class TaskBar:
    """Counts every task once, whatever is told of it and however often it is begun."""

    def __init__(self, progress: Progress, sizes: dict[str, int]) -> None:
        """``sizes``: of the tasks that are to be done, by name, in the unit of the bar."""
        self._progress = progress
        self._sizes = sizes
        self._counted: dict[str, int] = {}  # of tasks under way

    @property
    def under_way(self) -> UnderWay | None:
        """Is to be told how far a task is; None if nobody looks."""
        return None if isinstance(self._progress, SilentProgress) else self._told

    def _told(self, name: str, share: float) -> None:
        amount = int(self._sizes.get(name, 0) * min(share, 1.0))
        if amount > (before := self._counted.get(name, 0)):
            self._counted[name] = amount
            self._progress.advance(amount - before)

    def finished(self, name: str) -> None:
        """A task is done."""
        self._progress.advance(self._sizes[name] - self._counted.get(name, 0))
        self._counted[name] = self._sizes[name]


@contextmanager
def task_bar(title: str, tasks: Sequence[Task], earlier: Sequence[Task]) -> Iterator[TaskBar]:
    """A bar while the block runs, if stderr is a terminal.

    Args:
        title: what is being done.
        tasks: that are done in the block; if there are none there is no bar.
        earlier: that are finished already: the bar begins there, and what is left and the rate count ``tasks`` alone.
    """
    unit, size_of = BYTES, {task.name: task.num_bytes for task in (*tasks, *earlier)}
    documents = {task.name: task.documents for task in (*tasks, *earlier) if task.documents is not None}
    if len(documents) == len(size_of):
        unit, size_of = "documents", documents
    begun = sum(size_of[task.name] for task in earlier)
    total = begun + sum(size_of[task.name] for task in tasks)
    with progress_bar(title, total if tasks else 0, unit=unit, begun=begun) as progress:
        yield TaskBar(progress, {task.name: size_of[task.name] for task in tasks})
