"""`qwen-megatron report`: what a run did, as one HTML page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from data_tools.io.atomic_file import write_atomically
from qwen_megatron.report.page import page_of
from qwen_megatron.report.run_files import read_run

EPILOG = """examples:
  qwen-megatron report demo/run
  qwen-megatron report demo/run --output demo/report.html

The page needs neither network nor scripts: losses, rate, gradient norm, speed, where a step's time goes, memory,
starts, what changed between them, failures. It may be made while the run goes on.
"""


def add_parser(subparsers: Any) -> None:
    """Registers the command."""
    parser = subparsers.add_parser(
        "report",
        help="write a page about a run",
        description="Writes one self-contained HTML page about a run.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_directory", type=Path, metavar="RUN", help="the run's folder (checkpoint.directory)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write (default: RUN/report.html)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Writes the page and prints its path.

    Raises:
        ConfigError: if the folder holds no run.
    """
    output = args.output or args.run_directory / "report.html"
    write_atomically(output, page_of(read_run(args.run_directory)).encode("utf-8", errors="replace"))
    print(output)
    return 0
