"""Rules of the batch: every step of a run divides into whole micro-batches for every replica."""

from __future__ import annotations

import math
from dataclasses import dataclass

from data_tools.settings.problems import Problems, nearest_divisors, nearest_multiples, use
from qwen_megatron.config.fill import Sections

FULL = "training.global_batch_size"
MICRO = "training.micro_batch_size"
START = "training.rampup_start_batch_size"
INCREMENT = "training.rampup_batch_size_increment"
SAMPLES = "training.rampup_samples"
RAMP = (START, INCREMENT, SAMPLES)
PIPELINE = "parallel.pipeline_model_parallel_size"
VIRTUAL = "parallel.virtual_pipeline_model_parallel_size"
LAYOUT = ("parallel.world_size", "parallel.tensor_model_parallel_size", PIPELINE, "parallel.context_parallel_size")
# Far above any use; every one of them is looked at when steps are counted.
MOST_RISES = 10_000


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What a batch must be a multiple of.

    Attributes:
        samples: The number.
        reason: Its factors, as text.
    """

    samples: int
    reason: str


def check_batch(sections: Sections, problems: Problems) -> None:
    """The global batch, and every smaller one of a ramp, divides into whole micro-batches for every replica."""
    if not problems.usable(FULL, MICRO):
        return
    full, found = sections.training.global_batch_size, units(sections, problems)
    for unit in found:
        if full % unit.samples != 0:
            problems.add(FULL, full, f"must be a multiple of {unit.reason}; {nearest_multiples(unit.samples, full)}")
            return
    check_ramp(sections, found[-1], problems)


def units(sections: Sections, problems: Problems) -> list[Unit]:
    """What a batch must be a multiple of, the last one of all the others."""
    parallel, micro = sections.parallel, sections.training.micro_batch_size
    factors = f"{MICRO}({micro})"
    # Without a good layout the number of replicas is not known, but the batch is a multiple of the micro-batch anyway.
    if not problems.usable(*LAYOUT):
        return [Unit(samples=micro, reason=factors)]
    replicas = parallel.world_size // parallel.replica_size
    base = micro * replicas
    factors = f"{factors} x data_parallel_size({replicas})"
    found = [Unit(samples=base, reason=f"{factors} = {base}")]
    if parallel.virtual_pipeline_model_parallel_size is not None and problems.usable(VIRTUAL):
        # The interleaved schedule takes micro-batches in rounds of as many as there are stages.
        stages = parallel.pipeline_model_parallel_size
        reason = f"{factors} x {PIPELINE}({stages}) = {base * stages} with {VIRTUAL}"
        found.append(Unit(samples=base * stages, reason=reason))
    return found


def check_ramp(sections: Sections, unit: Unit, problems: Problems) -> None:
    """A ramp is whole, rises, ends at the full batch, and every size on the way is a good one."""
    training = sections.training
    start, increment = training.rampup_start_batch_size, training.rampup_batch_size_increment
    values = dict(zip(RAMP, (start, increment, training.rampup_samples), strict=True))
    given = [key for key, value in values.items() if value is not None]
    if not given or not problems.usable(*RAMP):
        return
    full = training.global_batch_size
    suggested = {START: unit.samples, INCREMENT: unit.samples, SAMPLES: 100 * full}
    for key, value in values.items():
        if value is None:
            rule = f"is needed for a batch-size ramp, and {' and '.join(given)} is given"
            problems.add(key, None, f"{rule}; use {suggested[key]}, or leave all three out")
    if start is not None and start >= full:
        lower = (full - 1) // unit.samples * unit.samples
        advice = f"use {lower}, or leave the ramp out" if lower else "leave the ramp out"
        problems.add(START, start, f"must be below {FULL}({full}); {advice}")
    elif start is not None and start % unit.samples != 0:
        problems.add(START, start, f"must be a multiple of {unit.reason}; {nearest_multiples(unit.samples, start)}")
    if start is None or increment is None or not problems.usable(START):
        return
    check_increment(full - start, increment, unit, problems)


def check_increment(rise: int, increment: int, unit: Unit, problems: Problems) -> None:
    """The increment divides the rise of the batch, into pieces that are whole for every replica."""
    pieces = rise // unit.samples
    if increment % unit.samples != 0 or rise % increment != 0:
        nearest = nearest_divisors(pieces, increment / unit.samples, unit.samples)
        rule = f"must be a multiple of {unit.reason} and divide {FULL} - {START} = {rise}; {nearest}"
        problems.add(INCREMENT, increment, rule)
    elif rise // increment > MOST_RISES:
        smallest = next(size for size in range(math.ceil(pieces / MOST_RISES), pieces + 1) if pieces % size == 0)
        rule = f"makes {rise // increment} rises, at most {MOST_RISES} are counted; {use([smallest * unit.samples])}"
        problems.add(INCREMENT, increment, rule)
