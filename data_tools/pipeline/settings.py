"""Dictionaries from YAML to dataclasses, with every mistake named by key, value and rule, all at once."""

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from data_tools.io.small_json import LARGEST_INTEGER, shown

_LONGEST_WORD = 80
_NO_TEXT = re.compile("[\x00\ud800-\udfff]")
Rule = tuple[Callable[[Any], bool], str]


class Problems:
    """Collects mistakes of one file."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.lines: list[str] = []

    def add(self, key: str, value: object, rule: str) -> None:
        """Notes that ``key`` with ``value`` breaks ``rule``."""
        self.lines.append(f"{self.path}: {key}={shown(value)} {rule}")


def _is_usable(value: float) -> bool:
    """Whether a number is neither infinite nor longer than any that means something here."""
    return abs(value) <= LARGEST_INTEGER if isinstance(value, int) else math.isfinite(value)


def rule(check: Callable[[Any], bool], text: str, default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field whose value must pass ``check``; ``text`` says what the rule is."""
    metadata = {"rule": (check, text)}
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def build(kind: type[Any], values: Mapping[str, Any], where: str, problems: Problems) -> Any:
    """An instance of the dataclass ``kind``; None if anything about it is wrong.

    Args:
        kind: its fields are str, int, float, bool, dataclasses, optional ones of these, tuples of these, and mappings
            from str to float.
        values: from the file.
        where: prefix of keys in messages, "" or ending in ".".
        problems: gets every mistake.
    """
    before = len(problems.lines)
    suggestions = 0
    hints = typing.get_type_hints(kind)
    fields = {one.name: one for one in dataclasses.fields(kind)}
    for key in values:
        if key not in fields:
            suggestions += 1
            # Of a thousand wrong keys nobody reads a thousand suggestions, each of which takes its time.
            near = difflib.get_close_matches(str(key)[:_LONGEST_WORD], fields, 1) if suggestions <= 20 else []
            hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(fields)}"
            problems.add(f"{where}{key}", values[key], f"is not a known key; {hint}")
    converted: dict[str, Any] = {}
    for name, field in fields.items():
        if name not in values:
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                problems.lines.append(f"{problems.path}: {where}{name} is missing")
            continue
        found = len(problems.lines)
        value = _convert(hints[name], values[name], f"{where}{name}", problems)
        if len(problems.lines) == found and "rule" in field.metadata:
            check, text = field.metadata["rule"]
            if not check(value):
                problems.add(f"{where}{name}", values[name], text)
        converted[name] = value
    return kind(**converted) if len(problems.lines) == before else None


def _convert(hint: Any, value: Any, key: str, problems: Problems) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        (hint,) = (one for one in arguments if one is not types.NoneType)
        return _convert(hint, value, key, problems)
    if hint is Any:
        return value
    if origin is tuple and arguments[-1] is not Ellipsis:
        if not isinstance(value, list | tuple) or len(value) != len(arguments):
            problems.add(key, value, f"must be a list of {len(arguments)} values")
            return value
        return tuple(_convert(one, part, key, problems) for one, part in zip(arguments, value, strict=True))
    if origin is tuple:
        return _tuple(arguments[0], value, key, problems)
    if isinstance(value, int | float) and not isinstance(value, bool) and not _is_usable(value):
        problems.add(key, value, "must be a finite number of usual size")
        return 0
    if isinstance(value, str) and _NO_TEXT.search(value):
        problems.add(key, value, "must not contain null characters or halves of surrogate pairs")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if origin is not None:
        return _mapping(value, key, problems)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            problems.add(key, value, "must be a mapping of keys to values")
            return None
        assert isinstance(hint, type)
        return build(hint, value, f"{key}.", problems)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        names = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}
        problems.add(key, value, f"must be {names[hint]}")
    return value


def _tuple(hint: Any, value: Any, key: str, problems: Problems) -> Any:
    if not isinstance(value, list | tuple):
        problems.add(key, value, "must be a list")
        return ()
    return tuple(_convert(hint, one, f"{key}[{number}]", problems) for number, one in enumerate(value))


def _mapping(value: Any, key: str, problems: Problems) -> Any:
    if not isinstance(value, Mapping):
        problems.add(key, value, "must be a mapping of names to numbers")
        return {}
    result = {}
    for name, number in value.items():
        if isinstance(number, bool) or not isinstance(number, int | float) or not _is_usable(number) or number < 0:
            problems.add(f"{key}.{name}", number, "must be a number of at least 0")
        else:
            result[str(name)] = float(number)
    return result
