"""Values, types and bounds as people write them."""

import difflib
import math
import types
import typing
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval, Le, Lt

LARGEST_SHOWN = 1000
LONGEST_WORD = 80


def show(value: object) -> str:
    """A value as a user would type it, cut short if it is very long."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{...}"
    if isinstance(value, int) and abs(value) >= 10**30:
        return f"a number above 10**{int(value.bit_length() * math.log10(2))}"
    text = str(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        text = str(int(value))
    return text if len(text) <= 80 else f"{text[:77]}..."


def closest(value: str, known: tuple[str, ...]) -> str:
    """The known word most like `value`, of which only the beginning counts: the comparison takes its time."""
    return difflib.get_close_matches(value[:LONGEST_WORD].lower(), known, n=1, cutoff=0.0)[0]


def join_or(words: tuple[str, ...]) -> str:
    """`a, b or c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def members(hint: Any) -> tuple[Any, ...]:
    """The types that a union names, or the one type that a hint is, without what is annotated; None among them."""
    if typing.get_origin(hint) is Annotated:
        return members(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return tuple(member for argument in typing.get_args(hint) for member in members(argument))
    return (hint,)


def choices(hint: Any) -> tuple[str, ...]:
    """The words that a `Literal` allows; none for other types."""
    return tuple(word for member in members(hint) if typing.get_origin(member) is Literal for word in member.__args__)


def type_name(hint: Any) -> str:
    """A type in words: `an integer or null`, `a list of 2 values`."""
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a string", Any: "a value"}
    words = []
    for member in members(hint):
        origin, arguments = typing.get_origin(member), typing.get_args(member)
        if member is types.NoneType:
            continue
        if origin is Literal:
            words.append("a string")
        elif origin is tuple and arguments[-1] is not Ellipsis:
            words.append(f"a list of {len(arguments)} values")
        else:
            words.append("a list" if origin is tuple else names.get(member, "a mapping"))
    return " or ".join([*words, *(["null"] if types.NoneType in members(hint) else [])])


def bounds(hint: Any) -> str:
    """The allowed values in words, without limits that only keep nonsense out."""
    if words := choices(hint):
        return join_or(words)
    return ", ".join(f"{sign} {show(bound)}" for sign, bound in limits(hint) if bound <= LARGEST_SHOWN)


def limits(hint: Any) -> list[tuple[str, Any]]:
    """Signs and bounds of a number's type."""
    found: list[tuple[str, Any]] = []
    for argument in typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else [hint]:
        for rule in getattr(argument, "__metadata__", ()):
            for part in rule if isinstance(rule, Interval) else [rule]:
                for kind, name, sign in ((Ge, "ge", ">="), (Gt, "gt", ">"), (Le, "le", "<="), (Lt, "lt", "<")):
                    if isinstance(part, kind):
                        found.append((sign, getattr(part, name)))
    return found
