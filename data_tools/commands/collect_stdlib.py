"""``qwen-data collect-stdlib``."""

import argparse
import sys
from pathlib import Path

_EXAMPLES = """examples:
  qwen-data collect-stdlib --output stdlib.jsonl
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "collect-stdlib",
        help="the source of Python's standard library as JSON Lines: real text without a download",
        description="Writes one record a module of the running Python's standard library, without tests and generated "
        "tables: some 2 million tokens. Licence: PSF-2.0.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="JSONL file to write")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Writes the file."""
    from data_tools.sources.python_stdlib import collect

    collected = collect(options.output)
    print(f"{options.output}: {collected.num_files:,} modules, {collected.num_bytes / 1e6:,.1f} MB")
    if collected.skipped:
        print(f"qwen-data: skipped, not UTF-8: {', '.join(collected.skipped)}", file=sys.stderr)
    return 0
