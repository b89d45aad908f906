"""What a rank is doing, and how long each part of a step takes it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager

OTHER = "other"
# In this order in reports.
STEP_PHASES = ("forward", "backward", "communication", "optimizer", "data", OTHER)


class StepTimers:
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
        self.marks: list[tuple[int, AbstractContextManager[object]]] = []
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

    def enter(self, name: str) -> Entered:
        """A context in which the rank is in the phase `name`."""
        return Entered(self, name)

    def push(self, name: str) -> None:
        """Enters a phase."""
        if self.mark is not None:
            self.marks.append((len(self.stack), self.mark(name)))
            self.marks[-1][1].__enter__()
        self.stack.append(name)
        self.switch()

    def cut(self, depth: int) -> None:
        """Leaves phases until `depth` of them are left."""
        del self.stack[depth:]
        self.switch()
        while self.marks and self.marks[-1][0] >= depth:
            self.marks.pop()[1].__exit__(None, None, None)

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


class Entered:
    """A phase as a context; a class, because some are entered for every collective and generators cost three times."""

    def __init__(self, timers: StepTimers, name: str):
        self.timers = timers
        self.name = name
        self.depth = 0

    def __enter__(self) -> None:
        self.depth = len(self.timers.stack)
        self.timers.push(self.name)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            # Not one pop: what an exception left behind, if it was caught inside, goes too.
            self.timers.cut(self.depth)


class Timer:
    """One of Megatron-Core's timers; between start and stop the rank is in its phase."""

    def __init__(self, timers: StepTimers, phase: str):
        self.timers = timers
        self.phase = phase

    def start(self, barrier: bool = False) -> None:
        """Enters the phase. No barrier whatever is asked for: ranks would wait for each other to be measured."""
        self.timers.push(self.phase)

    def stop(self) -> None:
        """Leaves the phase."""
        self.timers.cut(len(self.timers.stack) - 1)


def phase_of_timer(name: str) -> str:
    """The phase that one of Megatron-Core 0.16's timers stands for.

    All that is neither computing nor the optimizer sends, receives, reduces or gathers. So does what is left of
    `forward-backward`, the whole of a schedule: an interleaved pipeline waits there for what it has asked for.
    """
    if name in ("forward-compute", "backward-compute"):
        return name.removesuffix("-compute")
    return "optimizer" if name.startswith("optimizer-") else "communication"
