"""The parser of both command lines: an option that takes one value is given once, lists go on behind options."""

import argparse
from collections.abc import Sequence
from typing import Any


class CommandParser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` that refuses an option given twice, where argparse would keep the last value.

    What is meant to be repeated says so (`action="append"`). A command's last positional, if it is a list, takes what
    stands between and behind options too, where argparse would refuse it. Parsers of subcommands are of this class too.
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
        options, rest = super().parse_known_args(args, namespace)
        return options, self._taken_up(options, rest)

    def _taken_up(self, options: argparse.Namespace, rest: list[str]) -> list[str]:
        """What is left of the arguments that argparse did not know when the list has taken its own."""
        lists = [action for action in self._get_positional_actions() if action.nargs in ("*", "+")]
        if not lists or any(text.startswith("-") for text in rest):
            return rest
        try:
            more = [self._get_value(lists[-1], text) for text in rest]
        except argparse.ArgumentError as error:
            self.error(str(error))
        vars(options)[lists[-1].dest] = [*getattr(options, lists[-1].dest), *more]
        return []


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
