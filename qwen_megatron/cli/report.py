"""`qwen-megatron report`: what a run did, as one HTML page; two runs beside each other; the numbers for a script."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from data_tools.io.atomic_file import write_atomically
from qwen_megatron.errors import ConfigError
from qwen_megatron.report.charts import COLORS
from qwen_megatron.report.numbers import as_csv, numbers
from qwen_megatron.report.page import page_of
from qwen_megatron.report.run_files import read_run

EPILOG = """examples:
  qwen-megatron report demo/run
  qwen-megatron report runs/a runs/b
  qwen-megatron report demo/run --json
  qwen-megatron report demo/run --csv metrics.csv

The page is one file and needs no network: losses, rate, gradient norm, speed, where a step's time goes, memory, tokens
of each corpus, events, starts, what changed between them, failures. It may be made while the run goes on.
"""


def add_parser(subparsers: Any) -> None:
    """Registers the command."""
    parser = subparsers.add_parser(
        "report",
        help="write a page about a run, or compare two",
        description="Writes one self-contained HTML page about a run, or about several beside each other.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "run_directories", type=Path, metavar="RUN", nargs="+", help="a run's folder (checkpoint.directory)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="where to write (default: RUN/report.html; several: comparison.html)",
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--json", action="store_true", help="print the numbers as JSON and write no page")
    instead.add_argument(
        "--csv", type=Path, metavar="FILE", help="write steps and evaluations as CSV (-: print them) and no page"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Writes the page and prints its path, or gives the numbers in another form.

    Raises:
        ConfigError: if a folder holds no run, or the options do not go together.
    """
    check_usage(args)
    runs = [read_run(directory) for directory in args.run_directories]
    if args.json:
        found = [numbers(run) for run in runs]
        print(json.dumps(found[0] if len(found) == 1 else found, indent=2))
        return 0
    if args.csv == Path("-"):
        sys.stdout.write(as_csv(runs))
        return 0
    default = runs[0].directory / "report.html" if len(runs) == 1 else Path("comparison.html")
    output = args.csv or args.output or default
    content = page_of(*runs) if args.csv is None else as_csv(runs)
    write_atomically(output, content.encode("utf-8", errors="replace"))
    print(output)
    return 0


def check_usage(args: argparse.Namespace) -> None:
    """What argparse does not check.

    Raises:
        ConfigError: with the one that is wrong.
    """
    count = len(args.run_directories)
    if count > COLORS:
        raise ConfigError(f"report: {count} runs must be at most {COLORS}; more cannot be told apart in a chart")
    if args.output is not None and (args.json or args.csv is not None):
        raise ConfigError("report: --output names the page, which --json and --csv do not write; leave it out")
