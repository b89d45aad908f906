"""A dry run of a rank beside what was planned for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from qwen_megatron.config.arithmetic.kept import CPU, Kernels
from qwen_megatron.config.arithmetic.memory import stage_memory
from qwen_megatron.config.resolve import ResolvedConfig
from qwen_megatron.errors import ConfigError
from qwen_megatron.planning.dry_run import DryRun, dry_run
from qwen_megatron.planning.kernels import kernels_on
from qwen_megatron.planning.machine import Machine
from qwen_megatron.planning.place import place_of
from qwen_megatron.planning.search import Layout
from qwen_megatron.planning.traffic import step_traffic
from qwen_megatron.planning.work import step_flops

GIB = 2.0**30
NOTE = (
    "a dry run uses torch's kernels as on the CPU, which keep more than fused ones: `planned` is the same arithmetic "
    "for the kernels of the plan; of data, nothing is read or sent"
)


def compare(layout: Layout, machine: Machine, rank: int, num_microbatches: int | None = None) -> dict[str, Any]:
    """Runs a rank of a layout, and puts its numbers beside those of the arithmetic.

    Args:
        layout: Of the job.
        machine: Kind of device of the plan.
        rank: Of the job.
        num_microbatches: Of the step; None for as many as fill the pipeline twice.
    Raises:
        ConfigError: if a dry run of this job is not written.
    """
    if layout.config.shape.has_ppo_models or layout.config.shape.rows_per_sample > 1:
        raise ConfigError("--dry-run: runs jobs of one language model, pretrain and sft; leave it out")
    stages = layout.config.parallel.pipeline_model_parallel_size
    count = min(layout.config.num_microbatches, num_microbatches or max(2, 2 * stages))
    if layout.config.parallel.virtual_pipeline_model_parallel_size is not None:
        # The interleaved schedule takes as many at a time as there are stages.
        count = -(-count // stages) * stages
    config = on_torch(layout.config, count)
    stage = place_of(config, rank).stage
    memory = stage_memory(config, stage, Kernels(name=CPU))
    done = dry_run(config, rank)
    return {
        "rank": rank,
        "stage": stage,
        "overrides": layout.overrides,
        "num_microbatches": count,
        "memory_bytes": {
            "model": memory.total,
            "dry_run": done.peak_bytes,
            "state": {"model": memory.state, "dry_run": done.state_bytes},
            "planned": stage_memory(layout.config, stage, kernels_on(layout.config, machine)).total
            + layout.reserved_bytes,
        },
        "flops": {"model": step_flops(config, rank), "dry_run": done.flops},
        "sent_bytes": sent(config, done),
        "note": NOTE,
    }


def sent(config: ResolvedConfig, done: DryRun) -> dict[str, dict[str, int]]:
    """Bytes of each collective by both."""
    model: Mapping[str, int] = step_traffic(config, done.rank)
    return {
        name: {"model": model.get(name, 0), "dry_run": done.sent_bytes.get(name, 0), "calls": done.calls.get(name, 0)}
        for name in sorted({*model, *done.sent_bytes})
    }


def on_torch(config: ResolvedConfig, num_microbatches: int) -> ResolvedConfig:
    """The configuration as a dry run takes it: on the CPU's kernels, with so many micro-batches."""
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, implementation="torch"),
        parallel=dataclasses.replace(config.parallel, platform="cpu"),
        training=dataclasses.replace(config.training, fp8="none"),
        num_microbatches=num_microbatches,
    )


def comparison_text(compared: Mapping[str, Any]) -> str:
    """For people."""
    memory, flops = compared["memory_bytes"], compared["flops"]
    lines = [
        f"rank {compared['rank']}, stage {compared['stage']}, {compared['num_microbatches']} micro-batches, of",
        "  " + " ".join(compared["overrides"]),
        row("memory, GiB", memory["model"] / GIB, memory["dry_run"] / GIB),
        row("state, GiB", memory["state"]["model"] / GIB, memory["state"]["dry_run"] / GIB),
        row("operations, 10^12", flops["model"] / 1e12, flops["dry_run"] / 1e12),
        *(
            row(f"{name}, MiB", size["model"] / 2**20, size["dry_run"] / 2**20)
            for name, size in compared["sent_bytes"].items()
        ),
        f"planned with the kernels of the plan: {memory['planned'] / GIB:.2f} GiB, context and collectives included",
        compared["note"],
    ]
    return "\n".join(lines)


def row(name: str, model: float, dry: float) -> str:
    """One number by both ways."""
    difference = f"{model / dry - 1:+.2%}" if dry else "-"
    return f"  {name:<32} arithmetic {model:>14,.3f}  dry run {dry:>14,.3f}  {difference}"
