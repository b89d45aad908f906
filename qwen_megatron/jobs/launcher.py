"""This process's place in the job, as a launcher such as torchrun tells it through the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from data_tools.allocator import keep_freed_blocks
from qwen_megatron.errors import ConfigError
from qwen_megatron.libraries import without_compiler

# How long OpenMP's threads spin while they wait for work: of the standard, of GNU's library, of Intel's.
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# What is free at the end of the heap beyond this is given back to the system.
KEPT_BYTES = 1 << 29
# A thread count that any machine has room for.
LONGEST_COUNT = 5


class MachineError(ConfigError):
    """The configuration is right, but files it names are missing or unfit on this machine."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """This process's place in the job.

    Attributes:
        rank: Number of the process in the whole job; 0 without a launcher.
        local_rank: Its number on this machine.
        world_size: Processes of the job; None without a launcher.
        local_world_size: Those of them on this machine; None if the launcher does not say.
        restarts: How often torchrun has started this job again; 0 at first and without torchrun.
        threads: What the user has set OMP_NUM_THREADS to; None if he has not.
    """

    rank: int
    local_rank: int
    world_size: int | None
    local_world_size: int | None = None
    restarts: int = 0
    threads: int | None = None

    @property
    def neighbours(self) -> list[int]:
        """The other ranks of this machine: launchers number the ranks of a machine one after the other."""
        first = self.rank - self.local_rank
        return [rank for rank in range(first, first + (self.local_world_size or 1)) if rank != self.rank]

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Launch:
        """Reads RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, OMP_NUM_THREADS and two variables of torchrun.

        Raises:
            ConfigError: one of them is not a number, or they contradict each other.
        """
        problems: list[str] = []
        rank = number(environment, "RANK", problems)
        local_rank = number(environment, "LOCAL_RANK", problems)
        world_size = number(environment, "WORLD_SIZE", problems)
        local_world_size = number(environment, "LOCAL_WORLD_SIZE", problems)
        restarts = number(environment, "TORCHELASTIC_RESTART_COUNT", problems)
        if world_size is not None and (rank or 0) >= max(world_size, 1):
            problems.append(
                f"RANK={rank}: must be below WORLD_SIZE({world_size}); start with torchrun, which sets both"
            )
        if world_size == 0:
            problems.append("WORLD_SIZE=0: must be at least 1; start with torchrun, which sets it, or unset it")
        if problems:
            raise ConfigError(problems)
        rank = rank or 0
        return cls(
            rank=rank,
            local_rank=rank if local_rank is None else local_rank,
            world_size=world_size,
            local_world_size=local_world_size or None,
            restarts=restarts or 0,
            threads=threads_given(environment),
        )

    @classmethod
    def of_this_process(cls) -> Launch:
        """What the launcher has told this process.

        Raises:
            ConfigError: as `from_environment`.
        """
        return cls.from_environment(os.environ)


def threads_given(environment: Mapping[str, str]) -> int | None:
    """OMP_NUM_THREADS as a user has set it; None if he has not, or it is no number, which OpenMP ignores too.

    torchrun sets it to 1 where it is not set, with a notice that setting it to 1 avoids: there 1 says nothing.
    """
    # The first number is that of the outermost level.
    text = environment.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if not (text.isascii() and text.isdigit() and len(text) <= LONGEST_COUNT):
        return None
    count = int(text)
    return None if count == 0 or (count == 1 and "TORCHELASTIC_RUN_ID" in environment) else count


def let_waiting_threads_sleep(environment: MutableMapping[str, str] = os.environ) -> None:
    """Keeps threads that wait for work from spinning, unless the environment says how they wait.

    A spinning thread holds a core that another process, or the thread it waits for, needs: on a busy machine a step
    takes many times as long. OpenMP reads these variables once, when torch is imported.
    """
    if not any(name in environment for name in WAITING):
        environment["OMP_WAIT_POLICY"] = "PASSIVE"


def settle_environment() -> None:
    """Sets for this process, before torch is imported, how its libraries start; what the user has set stays."""
    without_compiler(os.environ)
    let_waiting_threads_sleep()


def settle_inference() -> None:
    """The same for a process that runs a model: its weights lie in huge pages where the system gives them when asked.

    Reading all of them for every token then misses the processor's table of pages less often: up to a quarter faster
    (docs/log.md). torch reads the variable with its first large tensor.
    """
    settle_environment()
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # The next layer needs blocks like those that the last one has freed: getting them anew took one twentieth of the
    # time of a long prompt.
    keep_freed_blocks(KEPT_BYTES)


def environment_for_children(**changes: str) -> dict[str, str]:
    """This process's environment for a process it starts, with some variables set."""
    return {**os.environ, **changes}


def number(environment: Mapping[str, str], name: str, problems: list[str]) -> int | None:
    """A count from the environment; None if it is not set or wrong."""
    text = environment.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        problems.append(f"{name}={text[:40]!r}: must be a number; start with torchrun, which sets it, or unset it")
        return None
    return int(text)
