"""Lines that a user types or pipes in."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from typing import Protocol

from qwen_megatron.errors import DataError

PROMPT = "> "
PATIENCE_SECONDS = 60.0
CHUNK_BYTES = 1 << 16
# Of one line; what is longer is no question.
LONGEST_BYTES = 1 << 20


class LineSource(Protocol):
    """Where lines come from.

    Attributes:
        is_terminal: Whether somebody sits there.
    """

    is_terminal: bool

    def next(self) -> str | None:
        """The next line without its end; empty if none has come in time, None at the end of the input."""


class TerminalLines:
    """Standard input, with the line editing of the terminal where it is one."""

    def __init__(self) -> None:
        # It is None in a process that was started without.
        self.is_terminal = sys.stdin is not None and sys.stdin.isatty()
        if self.is_terminal:
            with contextlib.suppress(ImportError):
                # Importing it is all that `input` needs to edit lines and to remember them.
                import readline  # noqa: F401

    def next(self) -> str | None:
        """The next line.

        Raises:
            DataError: if it is not in the encoding of the terminal.
        """
        if sys.stdin is None:
            return None
        try:
            return input(PROMPT if self.is_terminal else "")
        except EOFError:
            if self.is_terminal:
                print()
            return None
        except UnicodeDecodeError as error:
            raise DataError(f"standard input: is not {error.encoding} ({error.reason})") from error


class TimedLines:
    """A file read without Python's buffers, so that a wait for it can end: other ranks wait in a collective meanwhile.

    Args:
        file: Its descriptor.
        patience_seconds: Of a wait.
    """

    def __init__(self, file: int, patience_seconds: float = PATIENCE_SECONDS):
        self.file = file
        self.patience_seconds = patience_seconds
        self.is_terminal = os.isatty(file)
        self.is_prompted = False
        self.rest = bytearray()
        self.has_ended = False

    def next(self) -> str | None:
        """The next line.

        Raises:
            DataError: if it is not UTF-8, or too long.
        """
        if self.is_terminal and not self.is_prompted:
            print(PROMPT, end="", flush=True)
            self.is_prompted = True
        while b"\n" not in self.rest and not self.has_ended:
            ready, _, _ = select.select([self.file], [], [], self.patience_seconds)
            if not ready:
                return ""
            chunk = os.read(self.file, CHUNK_BYTES)
            self.has_ended = not chunk
            self.rest += chunk
            if len(self.rest) > LONGEST_BYTES:
                raise DataError(f"standard input: a line is longer than {LONGEST_BYTES} bytes; break it")
        if not self.rest:
            return None
        line, _, self.rest = self.rest.partition(b"\n")
        self.is_prompted = False
        try:
            return line.removesuffix(b"\r").decode()
        except UnicodeDecodeError as error:
            raise DataError(f"standard input: is not UTF-8 ({error.reason})") from error
