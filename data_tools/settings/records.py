"""Records of settings: frozen dataclasses whose types carry the bounds and whose docstrings are the reference.

A field without a default is needed, or worked out from others: what stands in its docstring says which.
"""

import ast
import inspect
import textwrap
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from annotated_types import Ge, Gt, Interval

# Far above anything useful, and small enough that arithmetic on it stays exact and cheap.
LARGEST_COUNT = 1_000_000_000_000

Count = Annotated[int, Interval(ge=1, le=LARGEST_COUNT)]
NonNegative = Annotated[int, Interval(ge=0, le=LARGEST_COUNT)]
Positive = Annotated[float, Gt(0.0)]
NonNegativeFloat = Annotated[float, Ge(0.0)]
Share = Annotated[float, Interval(ge=0.0, le=1.0)]
Seed64 = Annotated[int, Interval(ge=0, lt=1 << 64)]

Kind = TypeVar("Kind")


@typing.dataclass_transform(kw_only_default=True, frozen_default=True)
def record(kind: type[Kind]) -> type[Kind]:
    """Makes a class a record of settings: a frozen dataclass, fields by keyword, no unknown keys, finite numbers."""
    made = dataclass(frozen=True, kw_only=True)(kind)
    # What pydantic reads when it makes one of these out of data (`check.checked`).
    made.__pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}  # type: ignore[attr-defined]
    return made


class Rule:
    """A rule on a value that bounds cannot say; belongs into `Annotated[type, Rule(...)]`.

    Args:
        holds: Whether a value of the right type keeps it.
        text: What it is, and the fix: `must be the path of ...`.
    """

    def __init__(self, holds: Callable[[Any], bool], text: str) -> None:
        self.holds = holds
        self.text = text

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        from pydantic_core import PydanticCustomError, core_schema

        def apply(value: object) -> object:
            if not self.holds(value):
                raise PydanticCustomError("rule", "{rule}", {"rule": self.text})
            return value

        return core_schema.no_info_after_validator_function(apply, handler(source))


class CheckedLater:
    """Marks a field that a rule checks and types after loading: its value arrives as it was written."""


def hints_of(kind: Any) -> dict[str, Any]:
    """Field -> type with its annotations."""
    return typing.get_type_hints(kind, include_extras=True)


def docs_of(kind: type[Any]) -> dict[str, str]:
    """Field -> its docstring on one line, inherited ones too; fields without one are left out."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(node, ast.ClassDef)
        for field, text in zip(node.body, node.body[1:], strict=False):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(doc))):
                    found[name] = " ".join(doc.split())
    return found
