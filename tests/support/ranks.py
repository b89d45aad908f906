"""Processes that stand ready for distributed tests: real gloo groups without paying for a launch in every test.

Importing Megatron costs seconds a process, so one pool serves all tests. Each job gets a fresh process group over the
first `world_size` processes, with the variables that torchrun sets. The first rank that fails is shown; the processes
of its job are then thrown away, because its peers may hang in a collective.
"""

from __future__ import annotations

import gc
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import os
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

PRELOAD = ["tests.support.preload"]
# Process number of the fork server that has imported it.
SERVERS: set[int | None] = set()


def forkserver() -> Any:
    """Forks processes from one parent that imports everything once, before it has any thread or process group.

    A process has one fork server; workers of data_tools are forked from it too. One that they have started before has
    imported less, and makes room for ours.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    server: Any = multiprocessing.forkserver._forkserver
    if server._forkserver_pid not in SERVERS:
        server._stop()
        context.set_forkserver_preload(PRELOAD)
        multiprocessing.forkserver.ensure_running()
        SERVERS.add(server._forkserver_pid)
    return context


class RankFailed(AssertionError):
    """A rank raised; the message is its traceback."""


class RankPool:
    """Processes that run functions as ranks of a job."""

    def __init__(self) -> None:
        self.context = forkserver()
        self.processes: list[Any] = []
        self.pipes: list[multiprocessing.connection.Connection] = []

    def run(
        self, world_size: int, job: Callable[..., Any], *, timeout_seconds: float = 900, **arguments: Any
    ) -> list[Any]:
        """Runs `job(**arguments)` on `world_size` ranks; returns their results in the order of ranks.

        Raises:
            RankFailed: with the traceback of the first rank that failed or the ranks that did not answer in time.
        """
        self.grow(world_size)
        # A store of its own for each job, on a port that it finds itself: addresses of an earlier job must not be met.
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        environment = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port),
            "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": str(world_size),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }
        for rank, pipe in enumerate(self.pipes[:world_size]):
            pipe.send((environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, job, arguments))
        try:
            return self.collect(world_size, time.monotonic() + timeout_seconds)
        except BaseException:
            self.renew(world_size)
            raise

    def collect(self, world_size: int, deadline: float) -> list[Any]:
        results: dict[int, Any] = {}
        failures: dict[int, str] = {}
        while len(results) + len(failures) < world_size:
            waiting: dict[Any, int] = {
                self.pipes[rank]: rank for rank in range(world_size) if rank not in results | failures
            }
            ready: list[Any] = multiprocessing.connection.wait(
                list(waiting), timeout=max(0.0, deadline - time.monotonic())
            )
            if not ready:
                break
            for pipe in ready:
                rank = waiting[pipe]
                try:
                    failed, result = pipe.recv()
                except EOFError:
                    failed, result = True, "the process died"
                (failures if failed else results)[rank] = result
            if failures:
                # The culprit's peers often report first that their connection is gone: give it a moment to speak.
                deadline = min(deadline, time.monotonic() + 3)
        if failures:
            raise RankFailed("\n".join(f"rank {rank} failed:\n{text}" for rank, text in culprits_first(failures)))
        if len(results) < world_size:
            raise RankFailed(f"ranks {sorted(set(range(world_size)) - set(results))} did not answer in time")
        return [results[rank] for rank in range(world_size)]

    def grow(self, size: int) -> None:
        while len(self.processes) < size:
            self.add(len(self.processes))

    def add(self, place: int) -> None:
        """Starts the process of a rank."""
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        self.processes[place : place + 1] = [process]
        self.pipes[place : place + 1] = [ours]

    def renew(self, size: int) -> None:
        """Ends the processes of a job and starts others in their places."""
        for process in self.processes[:size]:
            process.kill()
        for place, process in enumerate(self.processes[:size]):
            process.join()
            self.pipes[place].close()
            self.add(place)

    def close(self) -> None:
        """Ends all processes; the next job starts new ones."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()
        self.processes, self.pipes = [], []


def culprits_first(failures: dict[int, str]) -> list[tuple[int, str]]:
    """Failures by rank, those that only lost their peer last."""
    return sorted(failures.items(), key=lambda item: ("Connection closed by peer" in item[1], item[0]))


def serve(pipe: multiprocessing.connection.Connection) -> None:
    """A rank: runs jobs until the pipe closes."""
    # What was imported stays; collections need not look at it again.
    gc.freeze()
    while True:
        try:
            environment, job, arguments = pipe.recv()
        except EOFError:
            return
        os.environ.update(environment)
        try:
            pipe.send((False, job(**arguments)))
        except BaseException:  # noqa: BLE001 - shown in the test that asked
            pipe.send((True, traceback.format_exc()))
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
            # An engine is full of cycles and holds groups, each with threads that wake a hundred times a second.
            gc.collect()
