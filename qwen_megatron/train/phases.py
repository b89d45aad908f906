"""What a rank is doing, and how long each part of a step takes it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

OTHER = "other"
# In this order in reports.
STEP_PHASES = ("forward", "backward", "communication", "optimizer", "data", OTHER)


class Phases:
    """Clock of one rank's phases; Megatron-Core's `config.timers`, too.

    Phases nest: time counts for the innermost one only, so that the seconds of all of them add up to the time passed.
    Nothing is synchronised for it. On CUDA, where work is queued, the host's time is shown: a phase that waits for the
    device gets the time of the work it waits for.

    One thread enters phases; any thread may read `current` and `since`.

    After an exception the phase it was raised in stays the current one, for whoever reports the failure.

    Args:
        clock: Seconds that never run backwards.
    Attributes:
        mark: While set, makes a context that each phase entered runs in: torch's profiler shows the phases so.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.mark: Callable[[str], AbstractContextManager[object]] | None = None
        self.marks: list[AbstractContextManager[object]] = [contextlib.nullcontext()]
        self.stack = [OTHER]
        self.seconds: dict[str, float] = {}
        # One object, replaced at once: a reader in another thread never sees a name with another phase's time.
        self.now = (OTHER, clock())

    @property
    def current(self) -> str:
        """Name of the innermost phase."""
        return self.now[0]

    @property
    def since(self) -> float:
        """The clock (`time.monotonic()`) when it became the innermost one, by entry, return or a take."""
        return self.now[1]

    @contextlib.contextmanager
    def enter(self, name: str) -> Iterator[None]:
        """Inside, the rank is in the phase `name`."""
        depth = len(self.stack)
        self.push(name)
        yield
        # Not one pop: what an exception left behind, if it was caught inside, goes too.
        self.cut(depth)

    def push(self, name: str) -> None:
        self.stack.append(name)
        self.switch()
        self.marks.append(contextlib.nullcontext() if self.mark is None else self.mark(name))
        self.marks[-1].__enter__()

    def cut(self, depth: int) -> None:
        """Leaves phases until `depth` of them are left."""
        while len(self.marks) > depth:
            self.marks.pop().__exit__(None, None, None)
        del self.stack[depth:]
        self.switch()

    def switch(self) -> None:
        """Counts the time since the last switch for the phase that was current."""
        name, since = self.now
        self.now = (self.stack[-1], self.clock())
        self.seconds[name] = self.seconds.get(name, 0.0) + self.now[1] - since

    def take(self) -> dict[str, float]:
        """Seconds in each phase since the last take, the running one included."""
        self.switch()
        taken, self.seconds = self.seconds, {}
        return taken

    def __call__(self, name: str, log_level: int | None = None) -> Timer:
        """Megatron-Core's protocol: the timer `name`, to be started and stopped."""
        return Timer(self, phase_of_timer(name))


class Timer:
    """One of Megatron-Core's timers; between start and stop the rank is in its phase."""

    def __init__(self, phases: Phases, phase: str):
        self.phases = phases
        self.phase = phase

    def start(self, barrier: bool = False) -> None:
        """Enters the phase. No barrier whatever is asked for: ranks would wait for each other to be measured."""
        self.phases.push(self.phase)

    def stop(self) -> None:
        """Leaves the phase."""
        self.phases.cut(len(self.phases.stack) - 1)


def phase_of_timer(name: str) -> str:
    """The phase that one of Megatron-Core 0.16's timers stands for.

    All that is neither computing nor the optimizer sends, receives, reduces or gathers. So does what is left of
    `forward-backward`, the whole of a schedule: an interleaved pipeline waits there for what it has asked for.
    """
    if name in ("forward-compute", "backward-compute"):
        return name.removesuffix("-compute")
    return "optimizer" if name.startswith("optimizer-") else "communication"
