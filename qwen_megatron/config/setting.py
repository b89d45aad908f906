"""What the configuration knows about one field besides its type: its meaning and the values it may take."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KEY = "setting"
# Far above anything useful, and small enough that arithmetic on it stays exact and cheap.
LARGEST_COUNT = 1_000_000_000_000
LARGEST_SHOWN = 1000
LONGEST_WORD = 80


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Meaning and bounds of a field.

    Attributes:
        doc: One or two sentences; units, and what None stands for.
        minimum, maximum: Bounds that are allowed themselves.
        above, below: Bounds that are not.
        choices: The allowed strings, where there are few.
    """

    doc: str
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()

    def broken_rule(self, value: object, default: object = None) -> str | None:
        """The rule that `value` breaks and the nearest value that keeps it; None for a good value.

        Args:
            value: A value of the right type; None is always good, whether it may be given is a matter of the type.
            default: Suggested where no nearest value exists.
        """
        if isinstance(value, str) and self.choices and value not in self.choices:
            return f"must be {join_or(self.choices)}; use {closest(value, self.choices)}"
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        example = "" if default is None else f"; use {show(default)} (the default)"
        if isinstance(value, float) and not math.isfinite(value):
            return f"must be a finite number{example}"
        if self.minimum is not None and value < self.minimum:
            return f"must be at least {show(self.minimum)}; use {show(self.minimum)}"
        if self.maximum is not None and value > self.maximum:
            return f"must be at most {show(self.maximum)}; use {show(self.maximum)}"
        if self.above is not None and value <= self.above:
            return f"must be above {show(self.above)}{example}"
        if self.below is not None and value >= self.below:
            return f"must be below {show(self.below)}{example}"
        return None

    @property
    def bounds(self) -> str:
        """The allowed values in words, without limits that only keep nonsense out."""
        if self.choices:
            return join_or(self.choices)
        parts = [
            f"{sign} {show(bound)}"
            for sign, bound in ((">=", self.minimum), (">", self.above), ("<=", self.maximum), ("<", self.below))
            if bound is not None and bound <= LARGEST_SHOWN
        ]
        return ", ".join(parts)


def about(
    doc: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] = (),
) -> Mapping[str, Setting]:
    """Metadata of a dataclass field; arguments as in `Setting`."""
    return {KEY: Setting(doc=doc, minimum=minimum, maximum=maximum, above=above, below=below, choices=choices)}


def count(doc: str, *, minimum: int = 1, maximum: int = LARGEST_COUNT) -> Mapping[str, Setting]:
    """Metadata of a field that counts something."""
    return about(doc, minimum=minimum, maximum=maximum)


def settings_of(section: Any) -> dict[str, Setting]:
    """The settings of a section, by field name.

    Args:
        section: A configuration dataclass or an instance of one.
    """
    return {field.name: field.metadata[KEY] for field in dataclasses.fields(section) if KEY in field.metadata}


def broken_fields(section: Any) -> dict[str, str]:
    """Field name -> broken rule, for the fields of a section instance whose value alone is wrong."""
    defaults = {
        field.name: field.default for field in dataclasses.fields(section) if field.default is not dataclasses.MISSING
    }
    rules = {
        name: setting.broken_rule(getattr(section, name), defaults.get(name))
        for name, setting in settings_of(section).items()
    }
    return {name: rule for name, rule in rules.items() if rule is not None}


def show(value: object) -> str:
    """A value as a user would type it, cut short if it is very long."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
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
