"""What a search found, as a script and as a person would read it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from qwen_megatron.config.resolve import ResolvedConfig
from qwen_megatron.config.summary import tokens_in_all
from qwen_megatron.planning.goodput import Failures, best_interval, goodput
from qwen_megatron.planning.machine import Machine
from qwen_megatron.planning.search import HEADROOM, Found, Layout, usable_bytes

DAY_SECONDS = 86_400
GIB = 2.0**30
# What the numbers do not know; printed with them.
LEFT_OUT = (
    f"memory: fragmentation and blocks that an allocator keeps (a headroom of {HEADROOM:.0%} is left), the data loader",
    "time: reading of data, evaluation, saves, stragglers, contention of the network, power limits",
    "links, prices and shares of the peaks are assumed where the hardware file says so; measure them with --calibrate",
)
NAMES = {
    "products": "products",
    "attention": "attention",
    "memory": "moving bytes",
    "launches": "starting operations",
    "tensor": "tensor-parallel communication",
    "context": "context-parallel communication",
    "bubble": "pipeline bubble",
    "transfers": "transfers between stages",
    "data": "data-parallel communication",
    "optimizer": "optimizer",
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A search with what it was for.

    Attributes:
        found: Its layouts.
        machine: Kind of device.
        gpus: How many.
        failures: How often the job fails.
    """

    found: Found
    machine: Machine
    gpus: int
    failures: Failures

    @property
    def shown(self) -> Layout:
        """The best layout, or the one that is nearest to fitting."""
        layout = self.found.layouts[0] if self.found.layouts else self.found.closest
        assert layout is not None
        return layout


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What follows from the time of a step.

    Attributes:
        tokens_per_day: Of training without a stop.
        days: To the tokens of the recipe, without a stop; None where it counts epochs of corpora, which stay closed.
        cost: Of them, US$, with the stops.
        mfu: Model FLOPs utilisation.
        tflops: 10^12 useful operations a second and device.
    """

    tokens_per_day: float
    days: float | None
    cost: float | None
    mfu: float
    tflops: float


def figures_of(layout: Layout, plan: Plan) -> Figures:
    """Speed and price of a layout."""
    config, seconds = layout.config, layout.time.total
    tokens_per_day = config.tokens_per_step / seconds * DAY_SECONDS
    tokens = tokens_of(config)
    days = None if tokens is None else tokens / tokens_per_day
    tflops = config.flops_per_token * config.tokens_per_step / config.world_size / seconds / 1e12
    cost = None
    if days is not None:
        with_stops = days / goodput(plan.failures, best_interval(plan.failures))
        cost = with_stops * 24 * plan.gpus * plan.machine.price_per_hour
    return Figures(
        tokens_per_day=tokens_per_day,
        days=days,
        cost=cost,
        mfu=tflops / plan.machine.peak_tflops,
        tflops=tflops,
    )


def tokens_of(config: ResolvedConfig) -> int | None:
    """Of the whole run; None where its length is in epochs."""
    return None if config.training.train_epochs is not None else tokens_in_all(config)


def as_dict(plan: Plan, count: int) -> dict[str, Any]:
    """For scripts: the best layouts first."""
    failures, interval = plan.failures, best_interval(plan.failures)
    return {
        "gpu": plan.machine.name,
        "gpus": plan.gpus,
        "tokens": tokens_of(plan.shown.config),
        "device_memory_bytes": plan.machine.memory_bytes,
        "usable_memory_bytes": usable_bytes(plan.machine),
        "fitting": len(plan.found.layouts),
        "too_large": plan.found.too_large,
        "refused": plan.found.refused,
        "layouts": [layout_dict(layout, plan) for layout in plan.found.layouts[:count]],
        "closest": layout_dict(plan.found.closest, plan) if not plan.found.layouts and plan.found.closest else None,
        "failures": {
            **dataclasses.asdict(failures),
            "best_interval_seconds": interval,
            "goodput": goodput(failures, interval),
        },
        "left_out": list(LEFT_OUT),
    }


def layout_dict(layout: Layout, plan: Plan) -> dict[str, Any]:
    """One layout."""
    figures, parallel = figures_of(layout, plan), layout.config.parallel
    return {
        "overrides": layout.overrides,
        "layout": {
            "tensor": parallel.tensor_model_parallel_size,
            "pipeline": parallel.pipeline_model_parallel_size,
            "virtual_pipeline": parallel.virtual_pipeline_model_parallel_size,
            "context": parallel.context_parallel_size,
            "data": layout.config.data_parallel_size,
            "sequence_parallel": parallel.sequence_parallel,
            "recompute": parallel.recompute_granularity,
            "micro_batch_size": layout.config.training.micro_batch_size,
            "num_microbatches": layout.config.num_microbatches,
        },
        "memory_by_rank": [
            {
                "stage": stage,
                **dataclasses.asdict(memory),
                "reserved": layout.reserved_bytes,
                "total": memory.total + layout.reserved_bytes,
            }
            for stage, memory in enumerate(layout.memory)
        ],
        "largest_memory_bytes": layout.largest_bytes,
        "time_by_part": dataclasses.asdict(layout.time),
        "step_seconds": layout.time.total,
        "limit": layout.time.limit,
        **dataclasses.asdict(figures),
    }


def as_text(plan: Plan, count: int) -> str:
    """For people: a table, and more of the best layout."""
    machine, config = plan.machine, plan.shown.config
    tokens = tokens_of(config)
    whole = f"{config.training.train_epochs} epochs" if tokens is None else f"{tokens:,}"
    head = (
        f"{config.num_parameters:,} parameters on {plan.gpus:,} x {machine.name}; {config.tokens_per_step:,} tokens a "
        f"step of {config.training.seq_length}, {whole} in all"
    )
    counts = (
        f"{len(plan.found.layouts):,} layouts fit into {usable_bytes(machine) / GIB:.1f} GiB, "
        f"{plan.found.too_large:,} need more, {plan.found.refused:,} are refused by the configuration check"
    )
    lines = [head, counts, ""]
    if plan.found.layouts:
        lines += table(plan, count)
    else:
        lines.append("none fits; the one that needs least:")
    return "\n".join([*lines, "", *details(plan), "", "not counted:", *(f"  {line}" for line in LEFT_OUT)])


def table(plan: Plan, count: int) -> list[str]:
    """The best layouts, a row each."""
    heads = ("", "TP", "PP", "VPP", "CP", "DP", "micro", "recompute", "GiB", "s/step", "MFU", "days", "million $")
    rows = [heads, *(row_of(number, layout, plan) for number, layout in enumerate(plan.found.layouts[:count], start=1))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def row_of(number: int, layout: Layout, plan: Plan) -> tuple[str, ...]:
    """Cells of a layout."""
    parallel, figures = layout.config.parallel, figures_of(layout, plan)
    virtual = parallel.virtual_pipeline_model_parallel_size
    return (
        str(number),
        str(parallel.tensor_model_parallel_size),
        str(parallel.pipeline_model_parallel_size),
        "-" if virtual is None else str(virtual),
        str(parallel.context_parallel_size),
        str(layout.config.data_parallel_size),
        f"{layout.config.training.micro_batch_size} x {layout.config.num_microbatches}",
        parallel.recompute_granularity,
        f"{layout.largest_bytes / GIB:.1f}",
        f"{layout.time.total:.3g}",
        f"{figures.mfu:.1%}",
        "-" if figures.days is None else f"{figures.days:.3g}",
        "-" if figures.cost is None else f"{figures.cost / 1e6:.3g}",
    )


def details(plan: Plan) -> list[str]:
    """Memory by stage, time by part, stops, and how to run the best layout."""
    layout = plan.shown
    figures = figures_of(layout, plan)
    interval = best_interval(plan.failures)
    hours = plan.failures.between_seconds / 3600
    parts = ", ".join(parts_of(layout))
    speed = f"{figures.tflops:.0f} TFLOP/s a GPU, {figures.tokens_per_day / 1e9:.4g} billion tokens a day"
    steps = max(1, round(interval / layout.time.total))
    saves = f"save every {interval / 60:.3g} min ({steps:,} steps), goodput {goodput(plan.failures, interval):.1%}"
    lines = [
        "GiB of a rank, first to last stage: "
        + " ".join(f"{(memory.total + layout.reserved_bytes) / GIB:.1f}" for memory in layout.memory),
        memory_line(layout),
        f"a step: {parts}",
        f"limited by {NAMES[layout.time.limit]}; {speed}",
        f"one stop in {hours:.3g} h is expected: {saves}",
    ]
    if plan.found.layouts:
        lines += ["to run it:", "  " + " ".join(layout.overrides)]
    else:
        lines.append("with: " + " ".join(layout.overrides))
        lines.append(advice(layout, plan))
    return lines


def memory_line(layout: Layout) -> str:
    """What the fullest rank's memory is made of."""
    stage = max(range(len(layout.memory)), key=lambda number: layout.memory[number].total)
    memory = layout.memory[stage]
    parts = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        "other models": memory.other_models,
        "activations": memory.activations,
        "loss and passing": max(memory.loss, memory.work),
        "context and collectives": layout.reserved_bytes,
    }
    shown = ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts.items() if size)
    return f"the fullest, stage {stage}: {shown}"


def parts_of(layout: Layout) -> list[str]:
    """Parts of a step, largest first, those below a thousandth left out."""
    times = {name: getattr(layout.time, name) for name in NAMES}
    ordered = sorted(times.items(), key=lambda item: -item[1])
    return [
        f"{NAMES[name]} {seconds / layout.time.total:.1%}"
        for name, seconds in ordered
        if seconds > layout.time.total / 1000
    ]


def advice(layout: Layout, plan: Plan) -> str:
    """What is missing where nothing fits."""
    missing = (layout.largest_bytes - usable_bytes(plan.machine)) / GIB
    return f"{missing:.1f} GiB a GPU are missing: use more GPUs, larger ones, or a shorter training.seq_length"


def layout_key(config: ResolvedConfig) -> str:
    """A layout in a few letters: `TP8 PP2 VPP20 DP64`."""
    parallel = config.parallel
    sizes = {
        "TP": parallel.tensor_model_parallel_size,
        "PP": parallel.pipeline_model_parallel_size,
        "VPP": parallel.virtual_pipeline_model_parallel_size or 1,
        "CP": parallel.context_parallel_size,
        "DP": config.data_parallel_size,
    }
    return " ".join(f"{name}{size}" for name, size in sizes.items() if size > 1) or "one GPU"
