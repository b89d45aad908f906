"""`qwen-megatron trace`: which documents a step was trained on."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from data_tools.io.plain_text import printable
from qwen_megatron.report.trace import traced_samples

EPILOG = """examples:
  qwen-megatron trace demo/run --step 40
  qwen-megatron trace demo/run --step 40 --json | jq .documents

The numbers of a step's samples are in metrics.jsonl; what they mean follows from the settings of the start that trained
the step (starts.jsonl) and from its corpora, which must be those that were trained on.
"""


def add_parser(subparsers: Any) -> None:
    """Registers the command."""
    parser = subparsers.add_parser(
        "trace",
        help="name the documents of a training step",
        description="Names the samples of a step, where their tokens stand, and the documents these belong to.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_directory", type=Path, metavar="RUN", help="the run's folder (checkpoint.directory)")
    parser.add_argument("--step", type=int, required=True, help="number of the step, the first is 1")
    parser.add_argument("--json", action="store_true", help="one JSON object a sample instead of lines for people")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the samples of the step.

    Raises:
        ConfigError: if the folder holds no run, or does not tell what the step was trained on.
        DataError: if a corpus is gone, or is not the one that was trained on.
    """
    for place in traced_samples(args.run_directory, args.step):
        print(json.dumps(place) if args.json else printable(as_line(place)))
    return 0


def as_line(place: dict[str, Any]) -> str:
    """One sample for people."""
    documents = place["documents"]
    named = str(documents[0]) if len(documents) == 1 else f"{documents[0]} to {documents[-1]}"
    start, stop = place["tokens"]
    return (
        f"sample {place['sample']}: {place['corpus']} tokens {start} to {stop - 1}, epoch {place['epoch']}, "
        f"{'document' if len(documents) == 1 else 'documents'} {named}"
    )
