"""Where tasks run: in this process, or in processes of this machine.

Each worker has a pipe of its own and at most one task at work; while the disk takes the outputs of a task, the worker
begins the next. A worker that dies closes its pipe, so the parent never waits
for it in vain (concurrent.futures can: its queue thread stays blocked in a large write to a worker that was killed); a
worker whose parent dies ends.

Workers are forked from a fork server, a process that has imported what operations need and has no threads: a worker
starts in milliseconds and shares that memory. Forked from this process, one could hang, as Rust and Arrow have threads
here. The server, one a process, starts with the first worker and ends with this process; environment and umask of
workers are those of that moment. As with spawned processes, a script that uses them guards its main part by
``if __name__ == "__main__":``.
"""

import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import NamedTuple, Protocol, TypeVar

from data_tools.engine.failures import record_failure
from data_tools.engine.task import Manifest, Task
from data_tools.errors import DataError

_T = TypeVar("_T")
UnderWay = Callable[[str, float], None]
"""Is told the name of a task, and the share of it that is done."""

# What a fork server imports for its workers.
_PRELOAD = ["data_tools.engine.preload"]


class Executor(Protocol):
    """Runs tasks that do not depend on each other."""

    def run(self, tasks: Sequence[Task], under_way: UnderWay | None = None) -> Iterator[Manifest]:
        """Does every task; manifests in the order in which the tasks end.

        Args:
            tasks: with different names.
            under_way: is told between two manifests which share of a task is done, by the caller's thread.
        Raises:
            DataError: a task failed, or its process was killed; the others are abandoned.
        """
        ...

    def close(self) -> None:
        """Ends the processes."""
        ...


class InProcessExecutor:
    """One task after the other, here."""

    def run(self, tasks: Sequence[Task], under_way: UnderWay | None = None) -> Iterator[Manifest]:
        """See `Executor.run`."""
        from data_tools.engine.operations import perform

        for task in tasks:
            yield perform(task, under_way and partial(under_way, task.name))

    def close(self) -> None:
        """Nothing to end."""


class ProcessExecutor:
    """Processes on this machine, started at the first use and kept for all stages."""

    def __init__(self, workers: int) -> None:
        self._num_workers = workers
        self._workers: list[_Worker] = []

    def run(self, tasks: Sequence[Task], under_way: UnderWay | None = None) -> Iterator[Manifest]:
        """See `Executor.run`."""
        if len(tasks) == 1 and not self._workers:
            # Starting a process would take longer than most single tasks.
            yield from InProcessExecutor().run(tasks, under_way)
            return
        waiting = deque(tasks)
        while len(self._workers) < min(self._num_workers, len(tasks)):
            self._workers.append(_Worker())
        workers = {worker.connection: worker for worker in self._workers}
        for worker in workers.values():
            if waiting:
                worker.send(waiting.popleft(), tells=under_way is not None)
        while busy := [connection for connection, worker in workers.items() if worker.num_tasks]:
            for connection in wait(busy):
                assert isinstance(connection, Connection)
                worker = workers[connection]
                received = worker.receive()
                if isinstance(received, Manifest):
                    yield received
                elif isinstance(received, _Share):
                    if under_way is not None:
                        under_way(*received)
                elif waiting:
                    worker.send(waiting.popleft(), tells=under_way is not None)

    def close(self) -> None:
        """See `Executor.close`."""
        while self._workers:
            self._workers.pop().stop()


class _Worker:
    def __init__(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOAD)
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs,), daemon=True)
        # Ctrl-C reaches the whole process group; the parent alone decides what it means. The server inherits the mask,
        # and workers from it; the tracker is started first because starting it unblocks the signal.
        resource_tracker.ensure_running()
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)
        theirs.close()
        self._task: Task | None = None
        self.num_tasks = 0  # whose manifests are to come

    def send(self, task: Task, *, tells: bool) -> None:
        self.num_tasks += 1
        self._task = task
        try:
            self.connection.send((task, tells))
        except OSError as error:
            raise self._died() from error

    def receive(self) -> "Manifest | _Share | None":
        """The manifest of a task, the share of one that is done, or None: ready for the next."""
        try:
            result = self.connection.recv()
        except (EOFError, OSError) as error:
            raise self._died() from error
        if result is None or isinstance(result, _Share):
            return result
        self.num_tasks -= 1
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
        assert self._task is not None
        error = self._how_it_ended(f"{self._task.folder}/{self._task.name}")
        record_failure(self._task, str(error))
        return error

    def _how_it_ended(self, task: str) -> DataError:
        code = self._process.exitcode or 0
        if code < 0:
            return DataError(
                f"{task}: its worker process was killed by signal {-code}, most often for lack of memory; use "
                "fewer workers and run again: finished parts are kept"
            )
        return DataError(
            f"{task}: its worker process ended with status {code}; what it printed above says why; finished "
            "parts are kept"
        )


class _Share(NamedTuple):
    """Which share of a task is done."""

    task: str
    share: float


class _Sender:
    """The pipe of a worker, in which several threads say something."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, what: object) -> None:
        with self._lock:
            self._connection.send(what)

    def told(self, task: str, share: float) -> None:
        self.send(_Share(task, share))


def _work(connection: Connection) -> None:
    from data_tools.engine.operations import begin

    # A server that somebody else in the parent has started need not have blocked it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    finisher = ThreadPoolExecutor(1)
    sender = _Sender(connection)
    before: Future[None] | None = None
    try:
        while True:
            task, tells = connection.recv()
            assert isinstance(task, Task)
            finish = _tried(partial(begin, task, partial(sender.told, task.name) if tells else None))
            if before is not None:
                before.result()  # One task waits for the disk, no more.
            if callable(finish):
                sender.send(None)
                before = finisher.submit(_send_result, sender, finish)
            else:
                sender.send(finish)
    except (EOFError, OSError):
        return  # The parent has gone.


def _send_result(sender: _Sender, finish: Callable[[], Manifest]) -> None:
    sent = False
    try:
        sender.send(_tried(finish))
        sent = True
    finally:
        if not sent:
            # A bug, or a parent that has gone: when this process ends, nobody waits for the result in vain.
            traceback.print_exc()
            os._exit(1)


def _tried(function: Callable[[], _T]) -> _T | DataError | OSError:
    try:
        return function()
    except (DataError, OSError) as error:
        return error


def _end_with_parent() -> None:
    """Ends this process at once when its parent is gone, so that it writes nothing beside the next run."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
