"""`qwen-megatron` with faults: torchrun starts this file instead, with a list of `Fault` in the environment."""

from __future__ import annotations

import functools
import importlib
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

FAULTS = "QWEN_MEGATRON_TEST_FAULTS"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that goes wrong on one rank when it calls a function.

    Attributes:
        rank: The rank.
        at: `module:function` or `module:Class.method`, looked up where it is called from.
        calls: Numbers of the calls that it happens at, the first is 1; empty for all.
        do: `kill`, `stop`, `exit`, `raise`, `sleep` (before the call), `nan` (what the call gives is nan).
        seconds: Length of a sleep; wait before a stop; how long the call goes on before a kill, which hits something in
            the middle then.
        attempt: Number of the start that it happens in, the first is 0; None for all.
    """

    rank: int
    at: str
    do: str
    calls: tuple[int, ...] = ()
    seconds: float = 0.0
    attempt: int | None = 0

    def happen(self) -> None:
        if self.do == "kill":
            threading.Timer(self.seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
        elif self.do == "stop":
            time.sleep(self.seconds)
            os.kill(os.getpid(), signal.SIGSTOP)
        elif self.do == "exit":
            os._exit(7)
        elif self.do == "raise":
            raise ArithmeticError("a fault of the test")
        elif self.do == "sleep":
            time.sleep(self.seconds)


def install(fault: Fault) -> None:
    """Wraps the function of the fault."""
    module, _, path = fault.at.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    function = getattr(owner, name)
    calls = 0

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        due = not fault.calls or calls in fault.calls
        if due:
            fault.happen()
        result = function(*args, **kwargs)
        return result * math.nan if due and fault.do == "nan" else result

    setattr(owner, name, wrapped)


def main(argv: Sequence[str] | None = None) -> int:
    for values in json.loads(os.environ[FAULTS]):
        fault = Fault(**values)
        mine = fault.rank == int(os.environ["RANK"])
        if mine and fault.attempt in (None, int(os.environ["TORCHELASTIC_RESTART_COUNT"])):
            install(fault)
    from qwen_megatron.cli.main import main as product

    return product(argv)


if __name__ == "__main__":
    sys.exit(main())
