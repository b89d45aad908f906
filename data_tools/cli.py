"""The command ``qwen-data``.

Exit status: 0 done, 1 the data or the disk is at fault (one message on stderr), 2 the command line is, 130 Ctrl-C.
"""

import argparse
import os
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
from data_tools.commands.parser import CommandParser
from data_tools.commands.renamed import with_current_name
from data_tools.commands.shared_options import add_shared_options, apply_loudness, check_command, complete
from data_tools.errors import DataError
from data_tools.io.plain_text import printable

EXIT_OK, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_TERMINATED = 0, 1, 130, 143

_COMMANDS = {
    "run": run,
    "stage": stage,
    "tokenize": tokenize,
    "import-corpus": import_corpus,
    "inspect": inspect,
    "verify": verify,
    "merge": merge,
    "quality": quality,
    "report": report,
    "tokenizer-report": tokenizer_report,
    "collect-stdlib": collect_stdlib,
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
    options = _parse(with_current_name(sys.argv[1:] if arguments is None else arguments, _RENAMED))
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        status: int = options.run(options)
        sys.stdout.flush()
        return status
    except DataError as error:
        return _failed(str(error))
    except BrokenPipeError:
        # The reader of our output went away (`| head`): not an error, but nothing more can be written to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except OSError as error:
        return _failed(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except KeyboardInterrupt:
        print("qwen-data: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, previous)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _parser()
    complete(parser)
    check_command(parser, arguments, _COMMANDS)
    options = parser.parse_args(arguments)
    apply_loudness(options)
    return options


def _parser() -> argparse.ArgumentParser:
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


def _failed(message: str) -> int:
    print(f"qwen-data: error: {printable(message)}", file=sys.stderr)
    return EXIT_FAILED
