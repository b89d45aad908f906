"""An option that takes one value is refused when it is given twice, in every command of both programs."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import pytest

import data_tools.cli
import qwen_megatron.cli.main
from data_tools.commands.parser import CommandParser

PROGRAMS = {"qwen-data": data_tools.cli.build_parser, "qwen-megatron": qwen_megatron.cli.main.build_parser}
# Of options whose type refuses "1".
VALUES = {"--shard": "0/4", "--lengths": "8"}


def commands(parser: argparse.ArgumentParser, *words: str) -> Iterator[tuple[list[str], argparse.ArgumentParser]]:
    """Every command of a program with its words, those of groups of commands too."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for group in groups:
        for name, child in group.choices.items():
            yield from commands(child, *words, name)
    if not groups:
        yield list(words), parser


def options(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    """Name and a good value of every option that keeps a value and is not made to be repeated."""
    for action in parser._actions:
        if action.option_strings and action.nargs != 0 and not isinstance(action, argparse._AppendAction):
            name = action.option_strings[-1]
            yield name, str(next(iter(action.choices))) if action.choices else VALUES.get(name, "1")


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_option_is_given_once(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = PROGRAMS[program]()
    seen = 0
    for words, command in commands(parser):
        for name, value in options(command):
            with pytest.raises(SystemExit) as raised:
                parser.parse_args([*words, name, value, f"{name}={value}"])
            message = capsys.readouterr().err.splitlines()[-1]
            assert (raised.value.code, f"{name}: is given twice; give it once" in message) == (2, True), message
            seen += 1
    assert seen > 10


def test_what_may_be_repeated_still_may() -> None:
    parser = CommandParser()
    parser.add_argument("--name", action="append")
    parser.add_argument("--one")
    parser.add_argument("--many", nargs="+")
    parser.add_argument("--flag", action="store_true")
    for _ in range(2):  # What was given in one call is nothing to the next.
        parsed = parser.parse_args(["--name", "a", "--one", "1", "--name", "b", "--many", "2", "3", "--flag", "--flag"])
        assert vars(parsed) == {"name": ["a", "b"], "one": "1", "many": ["2", "3"], "flag": True}
