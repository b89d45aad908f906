"""The command ``qwen-data``.

Exit statuses: `data_tools.commands.outcome`.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from data_tools.commands import (
    collect_stdlib,
    import_corpus,
    inspect,
    merge,
    quality,
    report,
    run,
    stage,
    tokenize,
    tokenizer_report,
    verify,
)
from data_tools.commands.outcome import EXIT_TERMINATED, exit_status
from data_tools.commands.renamed import with_current_name

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
    options = _parser().parse_args(with_current_name(arguments, _RENAMED))
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        status: int = options.run(options)
        return status
    finally:
        signal.signal(signal.SIGTERM, previous)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qwen-data",
        description="Offline corpus tools: text to the token files that training reads.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (
        run,
        stage,
        tokenize,
        import_corpus,
        inspect,
        verify,
        merge,
        quality,
        report,
        tokenizer_report,
        collect_stdlib,
    ):
        command.add_parser(subparsers)
    return parser


class _Version(argparse.Action):
    """Looks the version up only when it is asked for: reading package metadata takes longer than all else here."""

    def __call__(self, parser: argparse.ArgumentParser, *unused: object) -> None:
        from data_tools.version import version

        print(f"qwen-data {version()}")
        parser.exit()


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    # An exception, so that temporary files are removed on the way out.
    raise SystemExit(EXIT_TERMINATED)
