"""`qwen-megatron perplexity`: how well a model reads, at several lengths and in several ways."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_megatron.cli.inference_options import add_opening, add_windows, is_first_rank, opening_of, positive
from qwen_megatron.errors import ConfigError, DataError
from qwen_megatron.jobs.launcher import settle_inference
from qwen_megatron.libraries import first_imports, silence_libraries

if TYPE_CHECKING:
    from qwen_megatron.evaluation.perplexity import Perplexity

TABLE_3 = "none,ntk,dynamic-ntk,logn,dynamic-ntk+logn,dynamic-ntk+logn+window"

EPILOG = f"""examples:
  qwen-megatron perplexity runs/first --data held-out.jsonl --lengths 1024,2048,4096
  the paper's Table 3, each way of reading beyond the native length:
    qwen-megatron perplexity exports/7b --data long.txt --lengths 1024,2048,4096,8192,16384 \\
        --extend {TABLE_3}
  qwen-megatron perplexity runs/first --data data/corpus --lengths 128,512 --extend dynamic-ntk --windows 64:128

The same tokens are read at every length, in pieces that do not overlap: in short ones a token has little before it.
"""


def add_parser(subparsers: Any) -> None:
    """Registers the command."""
    parser = subparsers.add_parser(
        "perplexity",
        help="measure perplexity at several lengths",
        description="Prints the perplexity of a text, cut into pieces of each length, for each way of reading beyond "
        "the native length. Reads a checkpoint of any layout or a Hugging Face folder, on one process or under "
        "torchrun.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source", metavar="SOURCE", type=Path, help="a checkpoint, a run's folder or a Hugging Face folder"
    )
    parser.add_argument(
        "--data",
        required=True,
        metavar="DATA",
        help="text (.txt, .md, .jsonl, .parquet), int64 ids (.npy), or the prefix of a corpus",
    )
    parser.add_argument(
        "--lengths",
        type=lengths,
        default=[1024, 2048, 4096],
        metavar="N,...",
        help="tokens of a piece (1024,2048,4096)",
    )
    parser.add_argument(
        "--max-tokens", type=positive, default=262_144, metavar="N", help="of the text, its first ones (262144)"
    )
    parser.add_argument(
        "--extend",
        default="checkpoint",
        metavar="HOW,...",
        help="rows of the table: checkpoint (as its configuration says), none, ntk, dynamic-ntk, logn, "
        "dynamic-ntk+logn, dynamic-ntk+logn+window (checkpoint)",
    )
    add_windows(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table as JSON too")
    add_opening(parser, has_extension=False)
    parser.set_defaults(run=run)


def lengths(text: str) -> list[int]:
    """Numbers joined by commas, each at least 2."""
    found = text.split(",")
    if not all(one.isascii() and one.isdigit() and len(one) <= 9 and int(one) >= 2 for one in found):
        raise argparse.ArgumentTypeError(f"{text!r}: must be numbers of at least 2 tokens, joined by commas")
    return [int(one) for one in found]


def run(args: argparse.Namespace) -> int:
    """Runs the command.

    Raises:
        CheckpointError, DataError, PlatformError: from source and data.
        ConfigError: if an option is wrong, or the text is too short.
    """
    if args.json is not None and not args.json.parent.is_dir():
        raise ConfigError(f"--json={args.json}: {args.json.parent} is not a folder; make it first")
    if args.data.endswith((".npy", ".txt", ".md")) and not Path(args.data).is_file():
        raise DataError(f"{args.data}: no such file; check the name")
    settle_inference()
    silence_libraries()
    with first_imports():
        from qwen_megatron.evaluation.perplexity import measure, read_tokens
        from qwen_megatron.inference.extension import parse_windows
        from qwen_megatron.inference.opening import open_generator

    extensions = args.extend.split(",")
    args.extend = "checkpoint"
    with open_generator(args.source, opening_of(args), with_text=False) as generator:
        windows = parse_windows(args.windows, generator.staged.model.config.num_layers)
        ids = read_tokens(args.data, generator.vocabulary, args.max_tokens)
        cells = measure(generator, ids, args.lengths, extensions, windows)
    if is_first_rank():
        show(cells, args.lengths)
        if args.json is not None:
            from data_tools.io.atomic_file import write_atomically

            write_atomically(
                args.json, (json.dumps([dataclasses.asdict(cell) for cell in cells], indent=1) + "\n").encode()
            )
    return 0


def show(cells: list[Perplexity], columns: list[int]) -> None:
    """Prints the table, a row for each way of reading."""
    width = max(len(cell.extend) for cell in cells)
    print(" " * width, *(f"{length:>10}" for length in columns))
    for start in range(0, len(cells), len(columns)):
        row = cells[start : start + len(columns)]
        print(f"{row[0].extend:<{width}}", *(f"{cell.perplexity:>10.3f}" for cell in row))
