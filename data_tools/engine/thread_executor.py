"""Tasks in threads of this process."""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue

from data_tools.engine.operations import begin
from data_tools.engine.task import Manifest, Task
from data_tools.engine.work_sharing import WorkSharing, share_work

_Results = SimpleQueue[Manifest | BaseException]


class ThreadExecutor:
    """Threads, which start at once and share what is built for a task.

    For tasks whose work is done by kernels that let go of the interpreter's lock. While the disk takes the outputs of a
    task, its thread begins the next one. A thread for which no task is left does pieces of the others' tasks.
    """

    def __init__(self, workers: int) -> None:
        self._num_workers = workers

    def run(self, tasks: Sequence[Task]) -> Iterator[Manifest]:
        """See `Executor.run`; after an error or an interrupt the tasks that are being done are finished first."""
        waiting = deque(tasks)
        results: _Results = SimpleQueue()
        sharing = WorkSharing(self._num_workers)
        threads = [
            threading.Thread(target=_work, args=(waiting, results, sharing), daemon=True)
            for _ in range(self._num_workers if tasks else 0)
        ]
        for thread in threads:
            thread.start()
        try:
            for _ in tasks:
                result = results.get()
                if isinstance(result, BaseException):
                    raise result
                yield result
        finally:
            waiting.clear()
            for thread in threads:
                thread.join()

    def close(self) -> None:
        """Nothing to end."""


def _work(waiting: deque[Task], results: _Results, sharing: WorkSharing) -> None:
    share_work(sharing)
    with ThreadPoolExecutor(1) as finisher:
        try:
            _do_tasks(waiting, results, finisher)
        finally:
            sharing.help_others()


def _do_tasks(waiting: deque[Task], results: _Results, finisher: ThreadPoolExecutor) -> None:
    before: Future[None] | None = None
    while (task := _next(waiting)) is not None:
        try:
            finish = begin(task)
        except BaseException as error:  # noqa: BLE001  Whatever it is, the caller raises it.
            results.put(error)
            return
        if before is not None:
            before.result()  # One task waits for the disk, no more.
        before = finisher.submit(_finish, finish, results)


def _next(waiting: deque[Task]) -> Task | None:
    try:
        return waiting.popleft()
    except IndexError:
        return None  # Another thread took the last one.


def _finish(finish: Callable[[], Manifest], results: _Results) -> None:
    try:
        results.put(finish())
    except BaseException as error:  # noqa: BLE001
        results.put(error)
