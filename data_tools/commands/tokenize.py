"""``qwen-data tokenize``."""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from data_tools.commands.arguments import add_workers_argument, byte_size, positive_int, seed
from data_tools.commands.rejections import check_rejected, rejection_limit
from data_tools.readers.jsonl import LARGEST_DOCUMENT_BYTES

if TYPE_CHECKING:
    from data_tools.corpus.sidecar import Sidecar

_EXAMPLES = """examples:
  qwen-data tokenize web.jsonl.zst books.jsonl.gz --output corpora/mix
  qwen-data tokenize pages.jsonl --output corpora/pages --text-key content --workers 8
  qwen-data tokenize crawl.jsonl --output corpora/crawl --max-bad 0.1%
  qwen-data tokenize 'shards/*.parquet' notes/ --output corpora/all

Records that give no document (broken JSON, no text, empty, ...) are counted and listed with file and line in
PREFIX.rejected.jsonl; all others are in the corpus. Reasons: not_json, invalid_utf8, lone_surrogate, not_an_object,
missing_text, text_not_string, empty, too_long, not_encodable. A compressed file that is cut short or damaged is named
(truncated_stream, corrupt_stream) and makes the exit status 1, whatever --max-bad; what comes before is in the corpus.

Finished parts are kept beside the corpus in .NAME.work until it is complete: a run that was killed or interrupted goes
on from there when it is started again.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "tokenize",
        help="files of text to a shuffled corpus (.bin, .idx, .crc, .json)",
        description="Encodes the texts of JSON Lines, Parquet, WARC and text files (one document a file; plain, .gz, "
        ".zst, .bz2, .xz) with Qwen's tokenizer and writes a corpus in Megatron's indexed format, documents shuffled, "
        "each ending with token 151643.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="file, folder, pattern or URL")
    parser.add_argument(
        "--format",
        choices=("auto", "jsonl", "parquet", "warc", "text"),
        default="auto",
        help="of all inputs; auto goes by the name of each (auto)",
    )
    parser.add_argument("--output", required=True, metavar="PREFIX", help="path of the corpus without suffix")
    parser.add_argument(
        "--text-key", default="text", metavar="KEY", help="key of the text in a record, or its column (text)"
    )
    parser.add_argument("--seed", type=seed, default=1234, help="seed of the document order (1234)")
    parser.add_argument("--no-shuffle", action="store_true", help="keep the documents in the order of the input")
    add_workers_argument(parser)
    parser.add_argument(
        "--encoder", choices=("native", "tiktoken"), default="native", help="fast, or reference (native)"
    )
    parser.add_argument(
        "--check-interval",
        type=positive_int,
        default=1000,
        metavar="N",
        help="compare one record in N, and the first 64, with tiktoken (1000)",
    )
    parser.add_argument(
        "--max-document-bytes",
        type=_document_bytes,
        default="256M",
        metavar="SIZE",
        help="reject longer lines; at most 512M (256M)",
    )
    parser.add_argument(
        "--max-bad",
        type=rejection_limit,
        metavar="LIMIT",
        help="exit with status 1 if more records are rejected: a number (100) or a share of all (0.1%% or 0.001); the "
        "corpus is written all the same (no limit)",
    )
    parser.add_argument(
        "--rejected", type=Path, metavar="FILE", help="list of rejected records (PREFIX.rejected.jsonl)"
    )
    parser.add_argument(
        "--tokens-in-memory",
        type=_tokens,
        default="512M",
        metavar="N",
        help="most tokens that a worker sorts at once, 4 bytes of memory each; most inputs take fewer (512M)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a corpus that is there")
    parser.set_defaults(run=run)


def _document_bytes(text: str) -> int:
    value = byte_size(text)
    if value > LARGEST_DOCUMENT_BYTES:
        raise argparse.ArgumentTypeError(f"{text} is more than {LARGEST_DOCUMENT_BYTES // 2**20}M")
    return value


def _tokens(text: str) -> int:
    value = byte_size(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return value


def run(options: argparse.Namespace) -> int:
    """Makes the corpus and prints one line about it; fails if a stream breaks or --max-bad is exceeded."""
    from data_tools.corpus.rejections import rejected_path
    from data_tools.stages.tokenize_files import TokenizeOptions, tokenize

    started = time.monotonic()
    sidecar = tokenize(
        options.inputs,
        options.output,
        TokenizeOptions(
            text_key=options.text_key,
            file_format=options.format,
            seed=options.seed,
            shuffle=not options.no_shuffle,
            workers=options.workers,
            encoder=options.encoder,
            check_interval=options.check_interval,
            max_document_bytes=options.max_document_bytes,
            overwrite=options.overwrite,
            rejected=options.rejected,
            tokens_in_memory=options.tokens_in_memory,
        ),
    )
    print(_summary(options.output, sidecar, time.monotonic() - started))
    rejected = options.rejected or rejected_path(options.output)
    num_rejected = sum(sidecar.rejected.values())
    if num_rejected:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in sidecar.rejected.items())
        print(
            f"qwen-data: rejected {num_rejected:,} of {sidecar.records_in:,} records ({reasons}): {rejected}",
            file=sys.stderr,
        )
    check_rejected(sidecar.rejected, sidecar.num_documents, options.max_bad, rejected, f"the corpus {options.output}")
    return 0


def _summary(prefix: str, sidecar: "Sidecar", seconds: float) -> str:
    num_bytes = sum(file.size_bytes for file in sidecar.inputs)
    return (
        f"{prefix}: {sidecar.num_documents:,} documents, {sidecar.num_tokens:,} tokens from {num_bytes / 1e6:,.1f} MB "
        f"in {seconds:,.1f} s ({num_bytes / 1e6 / max(seconds, 1e-9):,.1f} MB/s)"
    )
