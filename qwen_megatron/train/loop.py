"""The training loop. It knows hooks, not what they do, and a job, not what it trains."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from types import TracebackType

import torch
import torch.distributed as dist

from qwen_megatron.parallel.groups import Groups
from qwen_megatron.train.job import StepOutcome
from qwen_megatron.train.run import Run, StepRecord
from qwen_megatron.train.step_timers import STEP_PHASES


def train(run: Run, on_error: Callable[[Exception], None] | None = None) -> None:
    """Trains from the run's state to its last step.

    Args:
        run: What is trained.
        on_error: Told of an error before anything is closed, which takes time.
    Raises:
        TrainingError: if a step cannot be taken. Peers are not waited for: they may be gone.
    """
    with contextlib.ExitStack() as resources:
        # All are closed whatever fails, closing another one included; the last named is closed first.
        resources.callback(run.job.close)
        for hook in reversed(run.hooks):
            resources.callback(hook.close)
        if on_error is not None:
            resources.push(first_told(on_error))
        for hook in run.hooks:
            hook.on_start(run)
        while run.state.iteration < run.last_step and run.stopping is None:
            record = next_step(run)
            for hook in run.hooks:
                hook.on_step(run, record)
        for hook in run.hooks:
            hook.on_end(run)


def first_told(on_error: Callable[[Exception], None]) -> Callable[..., None]:
    """`on_error` in the form of a context's exit."""

    def leave(kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, Exception):
            on_error(error)

    return leave


def next_step(run: Run) -> StepRecord:
    """Takes one step and counts it."""
    run.platform.synchronize()
    # What came between the steps is nobody's.
    run.timers.take()
    started = time.perf_counter()
    outcome = run.job.step(run)
    run.platform.synchronize()
    seconds = time.perf_counter() - started
    own = run.timers.take()
    phase_seconds, peak_bytes = measured_on_all_ranks(own, run.platform.peak_memory_bytes(), run.groups)
    own_seconds = sum(own.values()) - own.get("communication", 0.0)
    run.state.advance(outcome.batch_size, outcome.tokens)
    return step_record(run, outcome, seconds, phase_seconds, peak_bytes, own_seconds)


def measured_on_all_ranks(own: dict[str, float], peak_bytes: int, groups: Groups) -> tuple[dict[str, float], int]:
    """What the ranks measured beside each other, in one collective.

    Returns:
        Mean of each of a step's phases, in their order, which add up to a step's time as one rank's own do; and the
        largest peak of memory.
    """
    seconds = [own.get(name, 0.0) for name in STEP_PHASES]
    mine = torch.tensor([*seconds, peak_bytes], dtype=torch.float64, device=groups.device)
    gathered = mine.new_empty(groups.world_size * len(mine))
    dist.all_gather_into_tensor(gathered, mine)
    everyone = gathered.view(groups.world_size, len(mine))
    means = everyone.mean(dim=0).tolist()
    return {name: round(means[i], 6) for i, name in enumerate(STEP_PHASES)}, int(everyone[:, -1].max().item())


def step_record(
    run: Run,
    outcome: StepOutcome,
    seconds: float,
    phase_seconds: dict[str, float],
    peak_bytes: int,
    own_seconds: float,
) -> StepRecord:
    """Adds counters and speed to a step's outcome."""
    peak, flops = run.job.config.logging.peak_tflops_per_rank, outcome.flops
    return StepRecord(
        step=run.state.iteration,
        loss=outcome.loss,
        grad_norm=outcome.grad_norm,
        learning_rate=outcome.learning_rate,
        batch_size=outcome.batch_size,
        consumed_samples=run.state.consumed_samples,
        consumed_tokens=run.state.consumed_tokens,
        step_seconds=seconds,
        phase_seconds=phase_seconds,
        tokens_per_second=outcome.tokens / seconds,
        model_flops_utilization=(
            None if peak is None or flops is None else flops / seconds / (peak * 1e12 * run.groups.world_size)
        ),
        peak_memory_bytes=peak_bytes,
        own_seconds=own_seconds,
        skipped_steps=outcome.skipped_steps,
        spike=outcome.spike,
        metrics=outcome.metrics,
    )
