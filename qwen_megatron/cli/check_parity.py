"""`qwen-megatron check-parity`: proof on your own recipe that the layout changes the speed, not the result."""

from __future__ import annotations

import argparse
import json
from typing import Any

from qwen_megatron.cli.settings import add_settings
from qwen_megatron.config.load import split_settings
from qwen_megatron.errors import ConfigError
from qwen_megatron.jobs.parity import DEFAULT_LAYOUTS, TOLERANCE, largest_differences, parse_layout, train_layouts

EPILOG = """examples:
  qwen-megatron check-parity examples/demo.yaml
  qwen-megatron check-parity examples/qwen-7b.yaml data.blend=[data/corpus] --layouts tp2-sp,pp2-vpp2 --steps 5

A layout is a list of tp, pp, vpp, cp, dp with their sizes, and sp. The recipe is scaled down to fit one machine
(layers, width, sequence, batch; the vocabulary, the data and the rate stay) and trained in fp32, once in one process
and once in each layout.

exit status: 0 all layouts agree, 1 one does not or a run failed, 2 wrong usage
"""


def add_parser(subparsers: Any) -> None:
    """Registers the command."""
    parser = subparsers.add_parser(
        "check-parity",
        help="show that layouts train alike on your recipe",
        description="Trains a few steps of a recipe, scaled down, in each layout and compares them with one process.",
        usage="%(prog)s [CONFIG ...] [SECTION.KEY=VALUE ...] [--layouts A,B,...] [--steps N] [--json]",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_settings(parser)
    parser.add_argument("--layouts", default=DEFAULT_LAYOUTS, help=f"comma-separated (default: {DEFAULT_LAYOUTS})")
    parser.add_argument("--steps", type=int, default=5, help="optimizer steps in each layout (default: 5)")
    parser.add_argument("--json", action="store_true", help="print the differences as JSON instead of a table")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Trains and prints the table.

    Raises:
        ConfigError: if a layout is none, or the recipe does not fit it.
        TrainingError: if a run fails; its last lines are in the message.
    """
    if args.steps < 1:
        raise ConfigError(f"--steps {args.steps}: must be at least 1")
    layouts = [parse_layout(text) for text in args.layouts.split(",")]
    files, overrides = split_settings(args.settings)
    losses = train_layouts(files, overrides, layouts, args.steps)
    return report_json(losses) if args.json else report(losses)


def report_json(losses: dict[str, list[tuple[float, float]]]) -> int:
    """Prints the largest relative differences as JSON; the exit status."""
    layouts = {
        name: {"loss": loss, "grad_norm": norm, "agrees": max(loss, norm) <= TOLERANCE}
        for name, (loss, norm) in largest_differences(losses).items()
    }
    steps = len(next(iter(losses.values())))
    print(json.dumps({"tolerance": TOLERANCE, "steps": steps, "layouts": layouts}, indent=2))
    return 0 if all(layout["agrees"] for layout in layouts.values()) else 1


def report(losses: dict[str, list[tuple[float, float]]]) -> int:
    """Prints the table of largest relative differences; the exit status."""
    from rich.console import Console
    from rich.table import Table

    steps = len(next(iter(losses.values())))
    table = Table(title=f"largest relative difference from one process over {steps} steps, fp32")
    for column in ("layout", "loss", "gradient norm", f"within {TOLERANCE:.0e}"):
        table.add_column(column)
    differences = largest_differences(losses)
    for name, (loss, norm) in differences.items():
        table.add_row(name, f"{loss:.1e}", f"{norm:.1e}", "yes" if max(loss, norm) <= TOLERANCE else "NO")
    Console().print(table)
    return 0 if all(max(pair) <= TOLERANCE for pair in differences.values()) else 1
