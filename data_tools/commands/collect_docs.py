"""``qwen-data collect-docs``."""

import argparse
from pathlib import Path

_EXAMPLES = """examples:
  qwen-data collect-docs --output docs
  qwen-data chat docs/dialogues.jsonl --output corpora/dialogues
  qwen-data chat docs/pairs.jsonl --kind pairs --output corpora/pairs

Writes dialogues.jsonl (questions about functions, classes and topics with their documentation as answers, some of
several turns), pairs.jsonl (the thing's own docstring preferred to another's, a quarter of them near misses),
prompts.jsonl (the questions alone), and the same three with -held-out, about other things.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "collect-docs",
        help="dialogues and preference pairs of Python's own documentation: real ones without a download",
        description="Makes dialogues, preference pairs and prompts of the docstrings and topics that come with the "
        "running Python. Licence of the texts: PSF-2.0.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder to write to")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Writes the files and prints how many records each has."""
    from data_tools.sources.python_docs import collect_docs

    for name, number in collect_docs(options.output).records.items():
        print(f"{options.output / name}: {number:,} records")
    return 0
