"""Plain data to typed values: types and bounds by pydantic, what is wrong in our words."""

import dataclasses
import json
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from data_tools.settings.problems import MOST_SUGGESTIONS, Problems
from data_tools.settings.records import hints_of
from data_tools.settings.words import choices, closest, join_or, members, show, type_name

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Location = tuple[int | str, ...]


class Unusable:
    """Stands for a value that breaks a rule."""


UNUSABLE = Unusable()


def checked(
    hint: Any,
    value: object,
    key: str,
    problems: Problems,
    *,
    default: object = None,
    place: Callable[[Location], str] = lambda location: "",
) -> Any:
    """`value` as the type that `hint` names, UNUSABLE if it breaks a rule.

    Args:
        hint: A scalar type, a record, optional ones, tuples and mappings of these; with bounds and rules.
        value: None, bool, int, float, str, and lists and dicts of these, as JSON has them.
        key: Of the value, for messages; empty at the top of a file.
        problems: Gets every rule that is broken.
        default: Suggested where no nearest value exists.
        place: Where a part of the value stands, for messages: ` (file:line)`.
    """
    from pydantic import ValidationError

    try:
        # Of JSON, pydantic takes lists for tuples and objects for records even where it is strict about scalars.
        return adapter(hint).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        seen: set[Location] = set()
        for found in error.errors(include_url=False, include_input=False):
            location, part = known_part(hint, found["loc"])
            if location not in seen:
                seen.add(location)
                report(found, part, hint, location, value, key, problems, default, place)
        return UNUSABLE


@cache
def adapter(hint: Any) -> "TypeAdapter[Any]":
    """What pydantic checks a type with; numbers are finite."""
    from pydantic import ConfigDict, TypeAdapter

    is_record = any(dataclasses.is_dataclass(member) for member in members(hint)) and hint in members(hint)
    return TypeAdapter(hint, config=None if is_record else ConfigDict(allow_inf_nan=False))


def known_part(hint: Any, location: Location) -> tuple[Location, Any]:
    """As much of a location as leads to one type, and that type: a union of several is reported as a whole."""
    for depth, step in enumerate(location):
        kinds = [member for member in members(hint) if member is not types.NoneType]
        if len(kinds) > 1:
            return location[:depth], hint
        kind = kinds[0]
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if dataclasses.is_dataclass(kind):
            fields = hints_of(kind)
            if step not in fields:
                return location[: depth + 1], kind
            hint = fields[str(step)]
        elif origin is tuple and arguments[-1] is not Ellipsis:
            if not isinstance(step, int) or step >= len(arguments):
                return location[:depth], hint
            hint = arguments[step]
        elif origin is not None and arguments and isinstance(step, int | str):
            hint = arguments[0] if origin is tuple else arguments[1]
        else:
            return location[:depth], hint
    return location, hint


def report(
    found: Mapping[str, Any],
    part: Any,
    hint: Any,
    location: Location,
    value: object,
    key: str,
    problems: Problems,
    default: object,
    place: Callable[[Location], str],
) -> None:
    """Says one thing that pydantic found, in our words."""
    name = dotted(key, location)
    if found["type"] == "missing":
        kind = known_part(hint, location[:-1])[1]
        if not isinstance(location[-1], int):
            problems.messages.append(f"{name}: is missing{place(location[:-1])}")
            return
        location, part, name = location[:-1], kind, dotted(key, location[:-1])
    given = value_at(value, location)
    if location:
        default = default_at(hint, location)
    if found["type"] == "unexpected_keyword_argument":
        rule = unknown_key(str(location[-1]), tuple(hints_of(part)), problems)
    else:
        rule = broken_rule(found, part, given, default)
    problems.add(name, given, f"{rule}{place(location)}")


def broken_rule(found: Mapping[str, Any], hint: Any, value: object, default: object) -> str:
    """The rule that a value breaks, with the nearest value that keeps it."""
    example = "" if default is None else f"; use {show(default)} (the default)"
    context = found.get("ctx", {})
    match found["type"]:
        case "greater_than_equal":
            return f"must be at least {show(context['ge'])}; use {show(context['ge'])}"
        case "less_than_equal":
            return f"must be at most {show(context['le'])}; use {show(context['le'])}"
        case "greater_than":
            return f"must be above {show(context['gt'])}{example}"
        case "less_than":
            return f"must be below {show(context['lt'])}{example}"
        case "finite_number":
            return f"must be a finite number{example}"
        case "rule":
            return str(context["rule"])
        case "literal_error" if isinstance(value, str) and (words := choices(hint)):
            return f"must be {join_or(words)}; use {closest(value, words)}"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 and int in members(hint):
        example = f"; use {int(value)}"
    return f"must be {type_name(hint)}{example}"


def unknown_key(word: str, known: tuple[str, ...], problems: Problems) -> str:
    """The rule for a key that does not exist. Of a thousand wrong keys nobody reads a thousand suggestions."""
    if len(problems.messages) >= MOST_SUGGESTIONS or not known:
        return "unknown key"
    return f"unknown key; the closest known one is {closest(word, known)}"


def dotted(key: str, location: Sequence[int | str]) -> str:
    """`key.name[3].other`."""
    for step in location:
        key += f"[{step}]" if isinstance(step, int) else f".{show(step)}" if key else show(step)
    return key


def default_at(hint: Any, location: Location) -> object:
    """The default of a record's field; None where there is none."""
    for kind in members(known_part(hint, location[:-1])[1]):
        for field in dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ():
            if field.name == location[-1] and isinstance(field.default, bool | int | float | str):
                return field.default
    return None


def value_at(value: Any, location: Location) -> Any:
    """The part of plain data at a location; None where it has none."""
    for step in location:
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
        else:
            return None
    return value
