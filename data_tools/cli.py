"""The command ``qwen-data``.

Exit statuses: `data_tools.commands.outcome`.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from data_tools.allocator import KEPT_BYTES, keep_freed_blocks
from data_tools.commands import (
    chat,
    collect_docs,
    collect_stdlib,
    import_corpus,
    inspect,
    merge,
    quality,
    report,
    run,
    stage,
    tokenize,
    tokenizer,
    tokenizer_report,
    verify,
)
from data_tools.commands.outcome import EXIT_TERMINATED, exit_status
from data_tools.commands.parser import CommandParser
from data_tools.commands.renamed import with_current_name
from data_tools.commands.shared_options import add_shared_options, apply_loudness, check_command, complete

_COMMANDS = {
    "run": run,
    "stage": stage,
    "tokenize": tokenize,
    "chat": chat,
    "import-corpus": import_corpus,
    "inspect": inspect,
    "verify": verify,
    "merge": merge,
    "quality": quality,
    "report": report,
    "tokenizer": tokenizer,
    "tokenizer-report": tokenizer_report,
    "collect-stdlib": collect_stdlib,
    "collect-docs": collect_docs,
}

# Old name of a command -> its name.
_RENAMED = {"adopt": "import-corpus"}

_EPILOG = """examples:
  qwen-data tokenize web.jsonl.zst --output corpora/web
  qwen-data inspect corpora/web
  qwen-data COMMAND --help
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: the command line without the program's name; that of the process if None.
    Returns:
        the exit status; a wrong command line exits with 2 by itself.
    """
    return exit_status("qwen-data", sys.argv[1:] if arguments is None else arguments, _run)


def _run(arguments: Sequence[str]) -> int:
    options = _parse(with_current_name(arguments, _RENAMED))
    keep_freed_blocks(KEPT_BYTES, few_heaps=True)
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        status: int = options.run(options)
        return status
    finally:
        signal.signal(signal.SIGTERM, previous)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = build_parser()
    complete(parser)
    check_command(parser, arguments, _COMMANDS)
    options = parser.parse_args(arguments)
    apply_loudness(options)
    return options


def build_parser() -> argparse.ArgumentParser:
    """The parser with all commands."""
    parser = CommandParser(
        prog="qwen-data",
        description="Offline corpus tools: text to the token files that training reads.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in _COMMANDS.values():
        command.add_parser(subparsers)
    add_shared_options(parser)
    return parser


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    # An exception, so that temporary files are removed on the way out.
    raise SystemExit(EXIT_TERMINATED)
