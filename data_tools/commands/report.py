"""``qwen-data report``."""

import argparse
from pathlib import Path

_EXAMPLES = """examples:
  qwen-data report corpora/web-pipeline
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "report",
        help="what a pipeline did, as one HTML page",
        description="Writes DIR/report.html: how many documents each stage dropped and why, lengths, languages, "
        "sources, tokens, and examples of dropped documents.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("output", type=Path, metavar="DIR", help="output folder of qwen-data run")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Writes the report and prints its path."""
    from data_tools.pipeline.report import write_report

    print(write_report(options.output))
    return 0
