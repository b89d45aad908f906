"""Which rank keeps the others waiting."""

from __future__ import annotations

import logging

import torch
import torch.distributed as dist

from qwen_megatron.train.run import Hook, Run, StepRecord

log = logging.getLogger(__name__)

# Work of a rank that counts as slow, in that of its peers.
FACTOR = 1.5
# Differences below this share of a step do not matter, however large the factor.
LEAST_SHARE = 0.1


class StragglerHook(Hook):
    """Compares the ranks' own work every `interval` steps, and names those that are much slower than their peers.

    Peers hold the same pipeline stage, so that they have the same to do. Only time outside of communication counts:
    all ranks of a job take as long as the slowest, most of them by waiting. On CUDA, where work is queued, waiting may
    hide in any phase, and the report is a hint only.

    Args:
        interval: Steps between reports.
    """

    def __init__(self, interval: int):
        self.interval = interval
        self.worked = 0.0
        self.passed = 0.0
        self.steps = 0

    def on_step(self, run: Run, record: StepRecord) -> None:
        self.worked += record.own_seconds
        self.passed += record.step_seconds
        self.steps += 1
        if record.step % self.interval:
            return
        groups = run.groups
        mine = torch.tensor(
            [self.worked / self.steps, self.passed / self.steps, groups.pp.rank()],
            dtype=torch.float64,
            device=groups.device,
        )
        self.worked, self.passed, self.steps = 0.0, 0.0, 0
        everyone = torch.empty(groups.world_size * 3, dtype=torch.float64, device=groups.device)
        with run.timers.enter("communication"):
            dist.all_gather_into_tensor(everyone, mine)
        if run.is_main:
            for line in stragglers(everyone.view(-1, 3).tolist()):
                log.warning("step %d: %s", record.step, line)


def stragglers(ranks: list[list[float]]) -> list[str]:
    """A line for each slow rank, in time n log n.

    Args:
        ranks: For each rank, own seconds a step, seconds a step, and pipeline stage.
    """
    own_seconds: dict[float, list[float]] = {}
    for worked, _, stage in ranks:
        own_seconds.setdefault(stage, []).append(worked)
    middles = {stage: middle_pair(values) for stage, values in own_seconds.items() if len(values) > 1}
    lines = []
    for rank, (worked, step, stage) in enumerate(ranks):
        if stage not in middles:
            continue
        low, high = middles[stage]
        # The lower median of the others: taking away a rank of the lower half moves the upper half down by one place.
        usual = high if worked <= low else low
        if worked > FACTOR * usual and worked - usual > LEAST_SHARE * step:
            lines.append(
                f"rank {rank} is a straggler: {worked:.3f} s of its own work a step, its peers {usual:.3f} s, "
                f"of {step:.3f} s"
            )
    return lines


def middle_pair(values: list[float]) -> tuple[float, float]:
    """The two neighbours in sorted order of which one is the lower median of any all but one of the values.

    Args:
        values: At least two, in any order.
    """
    place = (len(values) - 2) // 2
    low, high = sorted(values)[place : place + 2]
    return low, high
