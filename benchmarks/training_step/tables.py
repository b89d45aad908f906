"""Markdown tables of what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from results import machine_line

from training_step.contestants import FFN, HEADS, HIDDEN, LAYERS, MEMORY_BATCH, SEQUENCE, SPEED_BATCH, VOCAB
from training_step.processes import Block

# (first, second, bar): the second's time divided by the first's must reach the bar.
Ratio = tuple[str, str, float]


def seconds(block: Block, clock: str) -> float:
    """The fastest step of a block."""
    return min(getattr(block, clock))


def speed_lines(title: str, blocks: Mapping[str, Sequence[Block]], ratios: Sequence[Ratio], clock: str) -> list[str]:
    """Tables of times and ratios.

    Args:
        title: Heading.
        blocks: Of every contestant, in the order of rounds.
        ratios: What to compare; ratios are medians over rounds of ratios within a round.
        clock: `cpu_seconds` or `wall_seconds`, for the ratios.
    """
    lines = [f"### {title}", "", "| | wall s/step | processor s/step |", "|---|---|---|"]
    for name, several in blocks.items():
        wall, cpu = (statistics.median(seconds(b, c) for b in several) for c in ("wall_seconds", "cpu_seconds"))
        lines.append(f"| {name} | {wall:.2f} | {cpu:.2f} |")
    lines += [
        "",
        f"| ratio ({clock.split('_')[0]} time) | median | lowest | highest | bar |",
        "|---|---|---|---|---|",
    ]
    for ours, theirs, bar in ratios:
        found = [seconds(b, clock) / seconds(a, clock) for a, b in zip(blocks[ours], blocks[theirs], strict=True)]
        lines.append(
            f"| {theirs} / {ours} | **{statistics.median(found):.2f}** | {min(found):.2f} | {max(found):.2f} | {bar} |"
        )
    return [*lines, ""]


def memory_lines(measured: Mapping[str, Block]) -> list[str]:
    """Table of peaks."""
    base = measured["transformers bf16 autocast"].peak_bytes
    lines = [
        f"### Peak resident memory, one micro-batch of {MEMORY_BATCH} x {SEQUENCE}",
        "",
        "| | GB | of transformers autocast |",
        "|---|---|---|",
    ]
    for name, block in measured.items():
        lines.append(f"| {name} | {block.peak_bytes / 1e9:.2f} | **{block.peak_bytes / base:.2f}** |")
    return [*lines, "", "Bar: 0.60 of transformers autocast for ours in bf16. The whole process is counted.", ""]


def machine_lines(busy_before: float) -> list[str]:
    """Where and when, whether other work ran beside, and what a step is; ``busy_before``: per cent of all cores."""
    return [
        machine_line(busy_before),
        f"hidden {HIDDEN}, {LAYERS} layers, ffn {FFN}, {HEADS} heads, sequence {SEQUENCE}, vocabulary {VOCAB:,},",
        f"{SPEED_BATCH * SEQUENCE} tokens a step unless said otherwise, not tied, clipping, AdamW. Contestants take",
        "turns; a round counts the fastest of its steps, a ratio is the median over rounds.",
        "",
    ]
