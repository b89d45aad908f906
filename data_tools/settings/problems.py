"""Collects what is wrong with settings, so that a user sees all of it at once, with the nearest good values."""

import math
from collections.abc import Iterable

from data_tools.errors import DataError, Refusal
from data_tools.settings.words import show

# Looking for the nearest known key takes milliseconds, and nobody reads more of them.
MOST_SUGGESTIONS = 50


class SettingsError(Refusal, DataError):
    """Settings break one or more rules; all of them are in the message.

    Attributes:
        problems: One line each: key, value, rule, the nearest good value, and the place in the file if there is one.
    """

    def __init__(self, problems: Iterable[str] | str):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class Problems:
    """Problems found so far, and the keys whose values cannot be used in further rules.

    Attributes:
        messages: `key=value: rule; nearest valid values`.
        unusable: Keys already found wrong: rules on them would report the same mistake again.
    """

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.unusable: set[str] = set()

    def add(self, key: str, value: object, rule: str) -> None:
        """Records that `key` breaks a rule."""
        self.messages.append(f"{key}={show(value)}: {rule}")
        self.unusable.add(key)

    def usable(self, *keys: str) -> bool:
        """Whether none of the keys has been found wrong."""
        return self.unusable.isdisjoint(keys)


def nearest_divisors(number: int, value: float, scale: int = 1) -> str:
    """The divisors of `number` next below and above `value`, times `scale`, as advice."""
    small = [divisor for divisor in range(1, math.isqrt(number) + 1) if number % divisor == 0]
    divisors = sorted({*small, *(number // divisor for divisor in small)})
    below = [divisor for divisor in divisors if divisor < value][-1:]
    above = [divisor for divisor in divisors if divisor > value][:1]
    return use(divisor * scale for divisor in below + above)


def nearest_multiples(base: int, value: int) -> str:
    """The positive multiples of `base` next below and above `value`, as advice."""
    below = value // base * base
    return use([number for number in (below, below + base) if number > 0])


def use(values: Iterable[int]) -> str:
    """`use 2 or 4`."""
    return f"use {' or '.join(str(value) for value in values)}"
