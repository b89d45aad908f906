"""What a command's end looks like in both programs: one message on stderr, and the exit status.

Exit statuses: 0 done; 1 data, machine or run at fault; 2 refused before anything was done, because of the command
line, a configuration or what stands in the way; 130 interrupted; 143 terminated.
"""

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import TextIOWrapper
from typing import TextIO

from data_tools.errors import DataError, Refusal
from data_tools.io.plain_text import printable
from data_tools.io.system_errors import explained

EXIT_OK, EXIT_FAILED, EXIT_REFUSED, EXIT_INTERRUPTED, EXIT_TERMINATED = 0, 1, 2, 130, 143


def exit_status(
    program: str,
    arguments: Sequence[str],
    command: Callable[[Sequence[str]], int],
    failures: tuple[type[Exception], ...] = (),
) -> int:
    """Runs a command; what a user can cause and mend becomes one message, everything else is a bug and is raised.

    Args:
        program: its name, which messages begin with.
        arguments: of the command line.
        command: takes the arguments; returns the exit status.
        failures: kinds of errors of this program beside DataError and OSError.
    Returns:
        the exit status.
    """
    caught: tuple[type[Exception], ...] = (DataError, Refusal, *failures)
    for stream in (sys.stdout, sys.stderr):
        _show_all_characters(stream)
    try:
        _require_text(arguments)
        status = command(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except caught as error:
        return _failed(program, str(error), EXIT_REFUSED if isinstance(error, Refusal) else EXIT_FAILED)
    except OSError as error:
        if error.filename is None and not _can_print():
            _give_up(sys.stdout)
            if isinstance(error, BrokenPipeError):
                # The reader of our output went away (`| head`), which is no error.
                return EXIT_OK
            error.filename = "standard output"
        # A folder in the place of a file is found before anything is written.
        return _failed(program, explained(error), EXIT_REFUSED if isinstance(error, IsADirectoryError) else EXIT_FAILED)
    except KeyboardInterrupt:
        _say(f"{program}: interrupted")
        return EXIT_INTERRUPTED


def _failed(program: str, message: str, status: int = EXIT_FAILED) -> int:
    _say(f"{program}: error: {printable(message)}")
    return status


def _say(line: str) -> None:
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        _give_up(sys.stderr)


def _can_print() -> bool:
    """Whether standard output takes a line end: what failed to be written is not kept, so flushing tells nothing."""
    try:
        print(flush=True)
    except OSError:
        return False
    return True


def _require_text(arguments: Sequence[str]) -> None:
    """Refuses names that are no UTF-8: they go into JSON, YAML and HTML, which have no way to write them."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            raise Refusal(
                f"{printable(argument)}: is no UTF-8; rename the file, or make a symbolic link to it that has an UTF-8 "
                f"name (where it is UTF-8, the locale is not: set LC_ALL=C.UTF-8)"
            ) from error


def _show_all_characters(stream: TextIO | None) -> None:
    """What a terminal's encoding does not have is shown as \\u4f60 instead of ending the command."""
    if isinstance(stream, TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")


def _give_up(stream: TextIO) -> None:
    """Keeps what is left in a stream's buffer from failing once more when the interpreter ends."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
