"""Contestants in processes of their own, measured a block of steps at a time."""

from __future__ import annotations

import multiprocessing
import os
import resource
import socket
import time
from dataclasses import dataclass
from typing import Any

from training_step.contestants import Work, build


@dataclass(frozen=True, kw_only=True)
class Block:
    """What one contestant measured in one round.

    Attributes:
        wall_seconds: Time of each step, of the slowest process.
        cpu_seconds: Processor time of each step over all threads and processes: what a busy machine changes less. A
            thread that spins while it waits is counted, too.
        peak_bytes: Largest resident memory of a process so far.
        start_bytes: Resident memory before the model was built.
    """

    wall_seconds: list[float]
    cpu_seconds: list[float]
    peak_bytes: int
    start_bytes: int


def contestant(work: Work, variables: dict[str, str], pipe: Any) -> None:
    """A process that measures a block of steps whenever it is told how many."""
    import warnings

    warnings.simplefilter("ignore")
    os.environ.update(variables)
    import torch

    torch.set_num_threads(work.threads)
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    step = build(work)
    while (count := pipe.recv()) is not None:
        wall, cpu = [], []
        for _ in range(count):
            before = time.perf_counter(), time.process_time()
            step()
            wall.append(time.perf_counter() - before[0])
            cpu.append(time.process_time() - before[1])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        pipe.send(Block(wall_seconds=wall, cpu_seconds=cpu, peak_bytes=peak, start_bytes=start))


class Contestant:
    """A contestant's processes: one, or the ranks of a job."""

    def __init__(self, work: Work):
        # Set before the process starts: OpenMP reads it when torch is loaded.
        os.environ["OMP_NUM_THREADS"] = str(work.threads)
        context = multiprocessing.get_context("spawn")
        self.pipes, self.processes = [], []
        port = free_port()
        for rank in range(work.num_processes):
            ours, theirs = context.Pipe()
            variables = rank_variables(rank, work.num_processes, port) if work.num_processes > 1 else {}
            process = context.Process(target=contestant, args=(work, variables, theirs), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    def run(self, steps: int) -> Block:
        """One block; the ranks wait for each other in every step, so that their times are those of the job."""
        for pipe in self.pipes:
            pipe.send(steps)
        blocks: list[Block] = [pipe.recv() for pipe in self.pipes]
        return Block(
            wall_seconds=[max(seconds) for seconds in zip(*(block.wall_seconds for block in blocks), strict=True)],
            cpu_seconds=[sum(seconds) for seconds in zip(*(block.cpu_seconds for block in blocks), strict=True)],
            peak_bytes=max(block.peak_bytes for block in blocks),
            start_bytes=max(block.start_bytes for block in blocks),
        )

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join()


def measure(work: Work, steps: int) -> Block:
    """A block of steps in new processes, after a step to warm up.

    New each time: beside the memory of idle processes, fresh memory for large tensors costs more.
    """
    one = Contestant(work)
    one.run(1)
    block = one.run(steps)
    one.close()
    return block


def rank_variables(rank: int, world_size: int, port: int) -> dict[str, str]:
    """What torchrun would set."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
