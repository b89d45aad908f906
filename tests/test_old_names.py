"""What has another name now: the old one still works and says the new one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import data_tools.cli
import qwen_megatron.cli.main

COMMANDS = [
    (qwen_megatron.cli.main.main, "certify", "check-parity", ["x.yaml", "--layouts", "tp0"]),
    (data_tools.cli.main, "adopt", "import-corpus", ["nowhere/corpus"]),
]


@pytest.mark.parametrize(("main", "old", "new", "arguments"), COMMANDS, ids=[old for _, old, _, _ in COMMANDS])
def test_an_old_command_does_what_the_new_one_does_and_says_its_name(
    main: Callable[[list[str]], int], old: str, new: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    status = main([new, *arguments])
    expected = capsys.readouterr()
    assert main([old, *arguments]) == status
    found = capsys.readouterr()
    assert found.out == expected.out
    assert found.err == f"note: `{old}` is called `{new}` now\n{expected.err}"
    assert expected.err


@pytest.mark.parametrize(("main", "old", "new"), [command[:3] for command in COMMANDS])
def test_help_shows_the_new_name_alone(
    main: Callable[[list[str]], int], old: str, new: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    words = capsys.readouterr().out.split()
    assert new in words
    assert old not in words
