"""Speed and memory of a training step against transformers and against the machine: `make bench-train`.

Contestants run in processes of their own, one after the other, several rounds; each round gives every contestant one
block of steps, so that a slow spell of the machine meets them alike. Ratios are medians over rounds of ratios within a
round. The floor is what no implementation can leave out on this machine with torch's kernels: the matrix products of
forward and backward, attention, and one pass of exp over the logits.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
from results import write_section
from training_step.contestants import MEMORY_BATCH, SEQUENCE, SPEED_BATCH, Work
from training_step.processes import Block, measure
from training_step.tables import machine_lines, memory_lines, speed_lines

# Results of different instruction sets stand side by side.
CAPABILITY = torch.backends.cpu.get_cpu_capability()

CONTESTANTS = {
    "ours fp32": Work(kind="ours", precision="fp32"),
    "transformers fp32": Work(kind="transformers", precision="fp32"),
    "floor fp32": Work(kind="floor", precision="fp32"),
    "ours bf16, fp32 masters": Work(kind="ours", precision="bf16"),
    "transformers bf16 autocast": Work(kind="transformers", precision="autocast"),
    "transformers pure bf16": Work(kind="transformers", precision="bf16"),
    "floor bf16": Work(kind="floor", precision="bf16"),
}
SPEED_RATIOS = (
    ("ours bf16, fp32 masters", "transformers bf16 autocast", 1.3),
    ("ours bf16, fp32 masters", "transformers pure bf16", 1.1),
    ("ours bf16, fp32 masters", "floor bf16", 0.62),
    ("ours fp32", "transformers fp32", 1.1),
    ("ours fp32", "floor fp32", 0.80),
)

# Two processes on two cores against one process with one thread, bf16 with fp32 masters.
ONE = Work(kind="ours", precision="bf16")
LARGE_BATCH = 8192 // SEQUENCE
PAIRS = {
    f"one process, {SPEED_BATCH * SEQUENCE} tokens": ONE,
    f"TP2, {SPEED_BATCH * SEQUENCE} tokens": replace(ONE, num_processes=2, tensor_size=2),
    "one process, 8192 tokens": replace(ONE, global_batch=LARGE_BATCH),
    "DP2, 8192 tokens": replace(ONE, num_processes=2, global_batch=LARGE_BATCH),
}
PAIR_RATIOS = (
    ("DP2, 8192 tokens", "one process, 8192 tokens", 1.6),
    (f"TP2, {SPEED_BATCH * SEQUENCE} tokens", f"one process, {SPEED_BATCH * SEQUENCE} tokens", 1.6),
)


def measure_rounds(contestants: Mapping[str, Work], rounds: int, steps: int) -> dict[str, list[Block]]:
    """Blocks of every contestant, by name, in the order of rounds."""
    blocks: dict[str, list[Block]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, several in blocks.items():
            several.append(measure(contestants[name], steps))
    return blocks


def measure_memory() -> dict[str, Block]:
    """Two steps with one large micro-batch: the second has optimizer state and activations at once."""
    names = ("ours bf16, fp32 masters", "transformers bf16 autocast", "transformers pure bf16", "ours fp32")
    threads = len(os.sched_getaffinity(0))
    return {
        name: measure(
            replace(CONTESTANTS[name], threads=threads, micro_batch=MEMORY_BATCH, global_batch=MEMORY_BATCH), 1
        )
        for name in names
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="one thread, two rounds of one step, no memory")
    parser.add_argument("--only", choices=("threads", "pairs", "memory"), help="one part of it")
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        help="only contestants of one precision; in bf16 torch itself takes minutes a step on AVX2",
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds of alternating contestants")
    parser.add_argument(
        "--steps", type=int, default=2, help="steps a contestant takes in a round, after one to warm up"
    )
    parser.add_argument("--write", action="store_true", help="write the section of docs/benchmarks.md")
    parser.add_argument("--json", type=Path, help="write the raw times here")
    options = parser.parse_args()
    lines = machine_lines(psutil.cpu_percent(interval=2.0))
    raw: dict[str, Any] = {}
    rounds, steps = (2, 1) if options.quick else (options.rounds, options.steps)

    def show(name: str, blocks: Mapping[str, Any], new: list[str]) -> None:
        raw[name] = {key: [vars(b) for b in (v if isinstance(v, list) else [v])] for key, v in blocks.items()}
        lines.extend(new)
        print("\n".join(new), flush=True)

    print("\n".join(lines), flush=True)
    for threads in (1,) if options.quick else (1, 2):
        if options.only in (None, "threads"):
            contestants = {
                name: replace(work, threads=threads)
                for name, work in CONTESTANTS.items()
                if options.precision is None or options.precision in name
            }
            ratios = [ratio for ratio in SPEED_RATIOS if contestants.keys() >= {*ratio[:2]}]
            blocks = measure_rounds(contestants, rounds, steps)
            # With two threads processor time would count those that spin while they wait for the other.
            clock = "cpu_seconds" if threads == 1 else "wall_seconds"
            title = f"Speed, {threads} thread{'s' if threads > 1 else ''}"
            show(f"{threads} threads", blocks, speed_lines(title, blocks, ratios, clock))
    if options.only == "pairs" or (options.only is None and not options.quick):
        # One step: that of 8192 tokens takes eight times as long as the others.
        blocks = measure_rounds(PAIRS, rounds, 1)
        show("pairs", blocks, speed_lines("Two processes, one thread each", blocks, PAIR_RATIOS, "wall_seconds"))
    if options.only == "memory" or (options.only is None and not options.quick and options.precision != "fp32"):
        measured = measure_memory()
        show("memory", measured, memory_lines(measured))
    if options.json is not None:
        options.json.write_text(json.dumps(raw, indent=1), encoding="utf-8")
    if options.write:
        heading = f"## Training step on {CAPABILITY} (`make bench-train`)"
        write_section(f"bench-train {CAPABILITY}", [heading, "", *lines])


if __name__ == "__main__":
    main()
