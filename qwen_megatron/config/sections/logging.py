"""Section `logging`: what is reported while training."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from annotated_types import Interval

from data_tools.settings.records import Count, record

# A list that names more steps or ranks than this is a mistake, and a set of them would not fit into memory.
LONGEST_LIST = 100_000


@record
class LoggingConfig:
    """Section `logging`."""

    log_interval: Count = 1
    """Optimizer steps between lines on the console; metrics.jsonl has every step."""
    replica_check_interval: Count = 100
    """Optimizer steps between comparisons of the weights that several processes must hold alike; also writes a hash
    of all weights to metrics.jsonl."""
    straggler_interval: Count = 10
    """Optimizer steps between looks for a process that keeps the others waiting."""
    tensorboard: bool = True
    """Write TensorBoard files."""
    wandb_project: str | None = None
    """Weights & Biases project to report to; needs the package (in the checkout `pip install -e '.[wandb]'`).
    Default: none, the package is not imported."""
    wandb_mode: Literal["online", "offline"] = "online"
    """`offline` writes into `wandb/` of the run's folder, for `wandb sync` later."""
    profile_steps: str | None = None
    """Steps that torch's profiler records, such as `10-12,50`; traces go to `profile/` of the run's folder.
    Default: none."""
    profile_ranks: str = "0"
    """Ranks that record them, such as `0` or `0-7,64`; each writes a file of its own."""
    peak_tflops_per_rank: Annotated[float, Interval(gt=0.0, le=1e9)] | None = None
    """Peak of one device in 10^12 floating-point operations a second, for the model FLOPs utilisation (H100, dense
    bf16: 989). Default: not reported."""


def numbers_in(text: str | None) -> frozenset[int]:
    """The numbers of a list such as `10-12,50`; None for none.

    Raises:
        ValueError: the rule that the text breaks.
    """
    numbers: set[int] = set()
    for part in text.split(",") if text is not None else ():
        match = re.fullmatch(r"([0-9]{1,12})(?:-([0-9]{1,12}))?", part.strip())
        if match is None:
            raise ValueError("must list numbers and ranges; use for example 10-12,50")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"must not have ranges that run backwards; use {last}-{first}")
        if len(numbers) + last - first >= LONGEST_LIST:
            raise ValueError(f"must name at most {LONGEST_LIST} numbers; use a shorter range")
        numbers.update(range(first, last + 1))
    return frozenset(numbers)
