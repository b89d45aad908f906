"""The parser of both command lines: an option that takes one value is given once."""

import argparse
from collections.abc import Sequence
from typing import Any


class CommandParser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` that refuses an option given twice, where argparse would keep the last value.

    What is meant to be repeated says so (`action="append"`). Parsers of subcommands are of this class too.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.given: set[argparse.Action] = set()
        for name in (None, "store"):
            self.register("action", name, _StoreOnce)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse does; every call begins anew."""
        self.given.clear()
        return super().parse_known_args(args, namespace)


class _StoreOnce(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if self.option_strings:
            given = parser.given if isinstance(parser, CommandParser) else set()
            if self in given:
                many = "; write its values one after the other, behind one of them" if self.nargs in ("*", "+") else ""
                raise argparse.ArgumentError(self, f"is given twice; give it once{many}")
            given.add(self)
        vars(namespace)[self.dest] = values
