"""Tasks in threads of this process."""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue

from data_tools.engine.executor import UnderWay
from data_tools.engine.operations import begin
from data_tools.engine.task import Manifest, Task
from data_tools.engine.work_sharing import WorkSharing, share_work

# A finished task, which share of one is done, or why one failed.
_Results = SimpleQueue[Manifest | tuple[str, float] | BaseException]


class ThreadExecutor:
    """Threads, which start at once and share what is built for a task.

    For tasks whose work is done by kernels that let go of the interpreter's lock. While the disk takes the outputs of a
    task, its thread begins the next one. A thread for which no task is left does pieces of the others' tasks.
    """

    def __init__(self, workers: int) -> None:
        self._num_workers = workers

    def run(self, tasks: Sequence[Task], under_way: UnderWay | None = None) -> Iterator[Manifest]:
        """See `Executor.run`; after an error or an interrupt the tasks that are being done are finished first."""
        waiting = deque(tasks)
        results: _Results = SimpleQueue()
        sharing = WorkSharing(self._num_workers)
        threads = [
            threading.Thread(target=_work, args=(waiting, results, sharing, under_way is not None), daemon=True)
            for _ in range(self._num_workers if tasks else 0)
        ]
        for thread in threads:
            thread.start()
        try:
            num_done = 0
            while num_done < len(tasks):
                result = results.get()
                if isinstance(result, BaseException):
                    raise result
                if isinstance(result, Manifest):
                    num_done += 1
                    yield result
                elif under_way is not None:
                    under_way(*result)
        finally:
            waiting.clear()
            for thread in threads:
                thread.join()

    def close(self) -> None:
        """Nothing to end."""


def _work(waiting: deque[Task], results: _Results, sharing: WorkSharing, tells: bool) -> None:
    share_work(sharing)
    with ThreadPoolExecutor(1) as finisher:
        try:
            _do_tasks(waiting, results, finisher, tells)
        finally:
            sharing.help_others()


def _do_tasks(waiting: deque[Task], results: _Results, finisher: ThreadPoolExecutor, tells: bool) -> None:
    before: Future[None] | None = None
    while (task := _next(waiting)) is not None:
        try:
            finish = begin(task, partial(_tell, results, task.name) if tells else None)
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


def _tell(results: _Results, task: str, share: float) -> None:
    results.put((task, share))


def _finish(finish: Callable[[], Manifest], results: _Results) -> None:
    try:
        results.put(finish())
    except BaseException as error:  # noqa: BLE001
        results.put(error)
