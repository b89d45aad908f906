"""Values of a Hugging Face config.json, each checked where it is taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data_tools.io.small_json import LARGEST_INTEGER, MissingFileError, SmallFileError, read_object
from qwen_megatron.errors import CheckpointError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: if the file is missing, too large, not JSON or not an object.
    """
    try:
        return read_object(path)
    except MissingFileError as error:
        raise CheckpointError(f"{path}: missing; {path.parent} is not a Hugging Face folder") from error
    except SmallFileError as error:
        raise CheckpointError(str(error)) from error


class ConfigFile:
    """A config.json whose values are asked for under all the names they have had.

    Args:
        path: For errors.
        content: The parsed file.
    """

    def __init__(self, path: Path, content: dict[str, Any]):
        self.path = path
        self.content = content

    def integer(self, *names: str, default: int | None = None) -> int:
        """The value of the first name that is given.

        Raises:
            CheckpointError: if it is not an integer, if two names disagree, or if it is missing without a default.
        """
        value = self.value(*names, default=default)
        if isinstance(value, bool) or not isinstance(value, int) or abs(value) > LARGEST_INTEGER:
            raise self.problem(names[0], value, "must be an integer")
        return value

    def number(self, *names: str, default: float | None = None) -> float:
        """The number under any of several names; see `integer`."""
        value = self.value(*names, default=default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.problem(names[0], value, "must be a number")
        return float(value)

    def boolean(self, *names: str, default: bool | None = None) -> bool:
        """True or false under any of several names; see `integer`."""
        value = self.value(*names, default=default)
        if not isinstance(value, bool):
            raise self.problem(names[0], value, "must be true or false")
        return value

    def value(self, *names: str, default: object = None) -> object:
        """The value under any of several names; null counts as not given."""
        given = {name: self.content[name] for name in names if self.content.get(name) is not None}
        if not given:
            if default is None:
                raise CheckpointError(f"{self.path}: {' or '.join(names)} is missing; add it")
            return default
        first, *others = given.values()
        if any(other != first for other in others):
            raise CheckpointError(f"{self.path}: {given} are names of one value and must agree; remove the wrong one")
        return first

    def require(self, name: str, expected: object, reason: str) -> None:
        """Refuses any other value than the expected one; a value that is not given is good.

        Raises:
            CheckpointError: with the reason.
        """
        value = self.content.get(name, expected)
        if value is not None and value != expected:
            raise self.problem(name, value, f"only {json.dumps(expected)} is supported: {reason}")

    def problem(self, name: str, value: object, rule: str) -> CheckpointError:
        """An error about one value."""
        return CheckpointError(f"{self.path}: {name}={json.dumps(value, default=str)[:200]}: {rule}")
