"""Where tasks run: in this process, or in processes of this machine.

Each worker has a pipe of its own and at most one task. A worker that dies closes its pipe, so the parent never waits
for it in vain (concurrent.futures can: its queue thread stays blocked in a large write to a worker that was killed); a
worker whose parent dies ends.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Protocol

from data_tools.errors import DataError
from data_tools.pipeline.task import Manifest, Task


class Executor(Protocol):
    """Runs tasks that do not depend on each other."""

    def run(self, tasks: Sequence[Task]) -> Iterator[Manifest]:
        """Does every task; manifests in the order in which the tasks end.

        Raises:
            DataError: a task failed, or its process was killed; the others are abandoned.
        """
        ...

    def close(self) -> None:
        """Ends the processes."""
        ...


class InProcessExecutor:
    """One task after the other, here."""

    def run(self, tasks: Sequence[Task]) -> Iterator[Manifest]:
        """See `Executor.run`."""
        from data_tools.pipeline.operations import perform

        yield from map(perform, tasks)

    def close(self) -> None:
        """Nothing to end."""


class ProcessExecutor:
    """Processes on this machine, started at the first use and kept for all stages."""

    def __init__(self, workers: int) -> None:
        self._num_workers = workers
        self._workers: list[_Worker] = []

    def run(self, tasks: Sequence[Task]) -> Iterator[Manifest]:
        """See `Executor.run`."""
        waiting = deque(tasks)
        while len(self._workers) < min(self._num_workers, len(tasks)):
            self._workers.append(_Worker())
        idle = list(self._workers)
        busy: dict[Connection, _Worker] = {}
        while waiting or busy:
            while waiting and idle:
                worker = idle.pop()
                worker.send(waiting.popleft())
                busy[worker.connection] = worker
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                worker = busy.pop(connection)
                manifest = worker.receive()
                idle.append(worker)
                yield manifest

    def close(self) -> None:
        """See `Executor.close`."""
        while self._workers:
            self._workers.pop().stop()


class _Worker:
    def __init__(self) -> None:
        # Spawned, not forked: a forked child of a process with Rust or Arrow threads may hang.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs,), daemon=True)
        # Ctrl-C reaches the whole process group; the parent alone decides what it means. The mask is inherited; the
        # tracker is started first because starting it unblocks the signal.
        resource_tracker.ensure_running()
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)
        theirs.close()
        self._task = ""

    def send(self, task: Task) -> None:
        self._task = f"{task.folder}/{task.name}"
        try:
            self.connection.send(task)
        except OSError as error:
            raise self._died() from error

    def receive(self) -> Manifest:
        try:
            result = self.connection.recv()
        except (EOFError, OSError) as error:
            raise self._died() from error
        if isinstance(result, DataError | OSError):
            raise result
        assert isinstance(result, Manifest)
        return result

    def stop(self) -> None:
        self.connection.close()
        self._process.terminate()
        self._process.join()

    def _died(self) -> DataError:
        self._process.join()
        code = self._process.exitcode or 0
        if code < 0:
            return DataError(
                f"{self._task}: its worker process was killed by signal {-code}, most often for lack of memory; use "
                "fewer workers and run again: finished parts are kept"
            )
        return DataError(
            f"{self._task}: its worker process ended with status {code}; what it printed above says why; finished "
            "parts are kept"
        )


def _work(connection: Connection) -> None:
    from data_tools.pipeline.operations import perform

    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            task = connection.recv()
        except (EOFError, OSError):
            return  # The parent has gone.
        assert isinstance(task, Task)
        try:
            result: Manifest | DataError | OSError = perform(task)
        except (DataError, OSError) as error:
            result = error
        try:
            connection.send(result)
        except ConnectionError:
            return


def _end_with_parent() -> None:
    """Ends this process at once when its parent is gone, so that it writes nothing beside the next run."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
