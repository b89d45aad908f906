"""The shape of `data.blend`: a list of prefixes or prefix -> weight."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from data_tools.settings.problems import Problems
from data_tools.settings.words import show

KEY = "data.blend"
CORPUS_SUFFIXES = (".bin", ".idx", ".json", ".crc")


def check_blend(blend: object, problems: Problems) -> tuple[str, ...] | Mapping[str, float]:
    """The blend, typed; what is wrong goes to `problems`.

    Args:
        blend: As the user gave it. Empty is allowed here; a run that trains needs at least one prefix.
        problems: Filled.
    Returns:
        Prefixes without weights, or prefix -> weight; empty if the blend cannot be used.
    """
    if not problems.usable(KEY):
        return ()
    if isinstance(blend, Mapping):
        for prefix, weight in blend.items():
            check_prefix(prefix, problems)
            check_weight(prefix, weight, problems)
        return {prefix: float(weight) for prefix, weight in blend.items()} if problems.usable(KEY) else {}
    if not isinstance(blend, list | tuple):
        rule = "must be a list of prefixes or a mapping of prefix to weight"
        problems.add(KEY, blend, f"{rule}; use [{blend}]" if isinstance(blend, str) and blend else rule)
        return ()
    for prefix in blend:
        check_prefix(prefix, problems)
    if not problems.usable(KEY):
        return ()
    for prefix, times in Counter(blend).items():
        if times > 1:
            problems.add(KEY, prefix, f"is named {times} times; name it once and give weights as prefix: weight")
    return tuple(blend)


def check_prefix(prefix: object, problems: Problems) -> None:
    """A prefix is a path without the suffix of one of a corpus's files."""
    if not isinstance(prefix, str) or not prefix:
        problems.add(KEY, prefix, "a prefix must be the path of a corpus without .bin")
    elif prefix.endswith(CORPUS_SUFFIXES):
        problems.add(KEY, prefix, f"a prefix is a path without suffix; use {prefix.rpartition('.')[0]}")


def check_weight(prefix: str, weight: object, problems: Problems) -> None:
    """A weight is a positive, finite number."""
    good = isinstance(weight, int | float) and not isinstance(weight, bool) and weight > 0
    # Sums of weights must stay finite, and exact enough to give shares.
    if not good or not math.isfinite(weight) or not 1e-12 <= weight <= 1e15:  # type: ignore[arg-type, operator]
        problems.add(f"{KEY}.{show(prefix)}", weight, "a weight must be a number above 0, at most 1e15; use 1.0")
        problems.unusable.add(KEY)
