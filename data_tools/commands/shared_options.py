"""What every command of both programs takes and does: --version, --quiet, --verbose, completion, a hint for a typo."""

import argparse
import contextlib
import difflib
import logging
import sys
from collections.abc import Collection, Sequence

from data_tools.io.progress import PROGRESS

_LOGGERS = ("data_tools", "qwen_megatron")


def add_shared_options(parser: argparse.ArgumentParser) -> None:
    """Adds --version to a program, and --quiet and --verbose to every command and action of it."""
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    for command in _leaves(parser):
        loudness = command.add_mutually_exclusive_group()
        loudness.add_argument("--quiet", action="store_true", help="say warnings and errors only, show no progress")
        loudness.add_argument("--verbose", action="store_true", help="say more: details, and what every process says")


def apply_loudness(options: argparse.Namespace) -> None:
    """Sets what is logged and whether progress is shown, for this command alone: the next one sets it again."""
    level = logging.WARNING if options.quiet else logging.DEBUG if options.verbose else logging.NOTSET
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(level)
    logging.getLogger(PROGRESS).setLevel(logging.ERROR if options.quiet else logging.WARNING)
    if options.verbose:
        logging.basicConfig(stream=sys.stderr, format="%(message)s")


def complete(parser: argparse.ArgumentParser) -> None:
    """Answers a shell that asks for completions, and ends the process then, if the package argcomplete is installed."""
    with contextlib.suppress(ImportError):
        import argcomplete

        argcomplete.autocomplete(parser)


def check_command(parser: argparse.ArgumentParser, arguments: Sequence[str], known: Collection[str]) -> None:
    """Refuses a command that there is none of, with the one that may be meant; exits with status 2."""
    if not arguments or arguments[0].startswith("-") or arguments[0] in known:
        return
    similar = difflib.get_close_matches(arguments[0][:100], known, n=1)
    meant = f"did you mean {similar[0]}?" if similar else f"the commands are {', '.join(known)}"
    parser.error(f"{arguments[0]}: no such command; {meant}")


def _leaves(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """The parsers of the commands, or of their actions where they have some."""
    inner = [
        child
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for child in action.choices.values()
    ]
    return [leaf for child in inner for leaf in _leaves(child)] if inner else [parser]


class _Version(argparse.Action):
    """Looks the version up only when it is asked for: reading package metadata takes longer than all else here."""

    def __call__(self, parser: argparse.ArgumentParser, *unused: object) -> None:
        from data_tools.version import version

        print(f"{parser.prog} {version()}")
        parser.exit()
