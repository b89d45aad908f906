"""The shape of `data.blend`, a list of prefixes or prefix -> weight, and of `data.eval_blend`, name -> prefixes."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any, TypeGuard

from data_tools.settings.problems import Problems
from data_tools.settings.words import show

KEY = "data.blend"
EVAL_KEY = "data.eval_blend"
CORPUS_SUFFIXES = (".bin", ".idx", ".json", ".crc")
# Stands in metrics.jsonl and in tags of TensorBoard.
NAME = re.compile(r"[\w.+-]{1,64}")


def check_blend(blend: object, problems: Problems, key: str = KEY) -> tuple[str, ...] | Mapping[str, float]:
    """The blend, typed; what is wrong goes to `problems`.

    Args:
        blend: As the user gave it. Empty is allowed here; a run that trains needs at least one prefix.
        problems: Filled.
        key: Of the setting.
    Returns:
        Prefixes without weights, or prefix -> weight; empty if the blend cannot be used.
    """
    if not problems.usable(key):
        return ()
    if isinstance(blend, Mapping):
        for prefix, weight in blend.items():
            check_prefix(key, prefix, problems)
            check_weight(key, prefix, weight, problems)
        return {prefix: float(weight) for prefix, weight in blend.items()} if problems.usable(key) else {}
    if not isinstance(blend, list | tuple):
        rule = "must be a list of prefixes or a mapping of prefix to weight"
        problems.add(key, blend, f"{rule}; use [{blend}]" if isinstance(blend, str) and blend else rule)
        return ()
    for prefix in blend:
        check_prefix(key, prefix, problems)
    if not problems.usable(key):
        return ()
    for prefix, times in Counter(blend).items():
        if times > 1:
            problems.add(key, prefix, f"is named {times} times; name it once and give weights as prefix: weight")
    return tuple(blend)


def check_eval_blend(
    given: object, blend: Iterable[str], problems: Problems
) -> tuple[str, ...] | Mapping[str, tuple[str, ...]]:
    """The corpora of evaluations, typed; what is wrong goes to `problems`.

    Args:
        given: As the user gave it.
        blend: Prefixes that are trained on.
        problems: Filled.
    Returns:
        Name -> prefixes; empty if there are none, or they cannot be used.
    """
    if not problems.usable(EVAL_KEY):
        return ()
    if isinstance(given, list | tuple):
        prefixes = [prefix for prefix in given if check_prefix(EVAL_KEY, prefix, problems)]
        names = Counter(Path(prefix).name for prefix in prefixes)
        for name, times in names.items():
            if times > 1:
                rule = f"{times} prefixes end in this name; use a mapping of name to prefix"
                problems.add(EVAL_KEY, name, rule)
        given = {Path(prefix).name: prefix for prefix in prefixes}
    if not isinstance(given, Mapping):
        rule = "must be a mapping of name to prefix or list of prefixes"
        problems.add(EVAL_KEY, given, f"{rule}; use {{test: {given}}}" if isinstance(given, str) and given else rule)
        return ()
    found = {name: check_eval_corpora(name, value, set(blend), problems) for name, value in given.items()}
    return found if found and problems.usable(EVAL_KEY) else ()


def check_eval_corpora(name: object, value: object, trained_on: Set[str], problems: Problems) -> tuple[str, ...]:
    """The prefixes of one name."""
    key = f"{EVAL_KEY}.{show(name)}"
    before = len(problems.messages)
    if not isinstance(name, str) or not NAME.fullmatch(name):
        problems.add(EVAL_KEY, name, "a name must be at most 64 letters, digits, _ . + or -; use test")
    prefixes: list[Any] = list(value) if isinstance(value, list | tuple) else [value]
    if not prefixes:
        problems.add(key, value, "names no corpus; leave the name out")
    good = [prefix for prefix in prefixes if check_prefix(key, prefix, problems)]
    for prefix in good:
        if prefix in trained_on:
            problems.add(
                key, prefix, "is trained on (data.blend); use another corpus, or hold out with data.eval_samples"
            )
    if len(problems.messages) > before:
        problems.unusable.add(EVAL_KEY)
    return tuple(good)


def check_prefix(key: str, prefix: object, problems: Problems) -> TypeGuard[str]:
    """A prefix is a path without the suffix of one of a corpus's files; whether it is one."""
    if not isinstance(prefix, str) or not prefix:
        problems.add(key, prefix, "a prefix must be the path of a corpus without .bin")
    elif prefix.endswith(CORPUS_SUFFIXES):
        problems.add(key, prefix, f"a prefix is a path without suffix; use {prefix.rpartition('.')[0]}")
    else:
        return True
    return False


def check_weight(key: str, prefix: str, weight: object, problems: Problems) -> None:
    """A weight is a positive, finite number."""
    good = isinstance(weight, int | float) and not isinstance(weight, bool) and weight > 0
    # Sums of weights must stay finite, and exact enough to give shares.
    if not good or not math.isfinite(weight) or not 1e-12 <= weight <= 1e15:  # type: ignore[arg-type, operator]
        problems.add(f"{key}.{show(prefix)}", weight, "a weight must be a number above 0, at most 1e15; use 1.0")
        problems.unusable.add(key)
