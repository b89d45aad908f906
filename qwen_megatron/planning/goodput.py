"""What failures cost a long run, and how often to save.

A job of mean time M between failures saves after every T seconds of work, which costs C seconds each time; after a
failure it needs R seconds to run again, and does again what was not saved. If failures come at random (exponentially),
T seconds of work and a save take (M + R) (exp((T + C) / M) - 1) seconds on average; goodput is T over that. It is
highest where
(1 - T / M) exp((T + C) / M) = 1, near the square root of 2 C M.
Source: Daly 2006 (doi 10.1016/j.future.2004.11.016), of which this is the equation (20) with restarts that may fail
too.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

# Llama 3 (arXiv 2407.21783, section 3.3.4): 419 unexpected stops in 54 days on 16,384 GPUs, one in 3 hours.
GPU_HOURS_BETWEEN_FAILURES = 16_384 * 54 * 24 / 419


@dataclass(frozen=True, kw_only=True)
class Failures:
    """How often a job fails, and what it costs.

    Attributes:
        between_seconds: Mean time between failures of the job.
        save_seconds: For which a save keeps the job from training.
        restart_seconds: From a failure to the first step after it.
    """

    between_seconds: float
    save_seconds: float
    restart_seconds: float


def failures_of(gpus: int, save_seconds: float, restart_seconds: float, gpu_hours: float) -> Failures:
    """Of a job on so many GPUs, each of which fails once in so many hours."""
    return Failures(between_seconds=gpu_hours * 3600 / gpus, save_seconds=save_seconds, restart_seconds=restart_seconds)


def goodput(failures: Failures, interval_seconds: float) -> float:
    """Share of the time that goes into work that is kept, with a save after every `interval_seconds` of work."""
    between = failures.between_seconds
    stretch = (interval_seconds + failures.save_seconds) / between
    if stretch > 500:
        return 0.0
    return interval_seconds / ((between + failures.restart_seconds) * math.expm1(stretch))


def best_interval(failures: Failures) -> float:
    """Seconds of work between saves that give the highest goodput."""
    low, high = 0.0, failures.between_seconds
    for _ in range(100):
        middle = (low + high) / 2
        rest = 1 - middle / failures.between_seconds
        is_early = rest * math.exp((middle + failures.save_seconds) / failures.between_seconds) > 1
        low, high = (middle, high) if is_early else (low, middle)
    return low


def simulated_goodput(failures: Failures, interval_seconds: float, saves: int, seed: int = 0) -> float:
    """The same from a run of so many saves whose failures are drawn.

    Args:
        failures: As for `goodput`.
        interval_seconds: Work between saves.
        saves: Length of the run.
        seed: Of the draws.
    """
    draw = random.Random(seed)
    elapsed, next_failure = 0.0, draw.expovariate(1 / failures.between_seconds)
    needed = interval_seconds + failures.save_seconds
    for _ in range(saves):
        done = elapsed + needed
        while next_failure < done:
            # Nothing fails while it starts again: another failure then only starts it later.
            elapsed = next_failure + failures.restart_seconds
            next_failure = elapsed + draw.expovariate(1 / failures.between_seconds)
            done = elapsed + needed
        elapsed = done
    return saves * interval_seconds / elapsed
