"""Unicode normalisation form C in linear time.

``unicodedata.normalize`` sorts runs of combining marks by insertion, in quadratic time: a megabyte of alternating
accents takes minutes. Long runs are sorted here first, which is canonically equivalent and leaves it nothing to do.
"""

import re
import unicodedata
from functools import cache

_LONG_RUN = 64
# A mark is no word character and none of the first blocks; cheap to look for, before the marks themselves are listed.
_MAYBE_MARKS = re.compile(rf"[^\w\s\x00-\u02ff]{{{_LONG_RUN}}}")
# Marks lie in the first two planes.
_LAST_MARK = 0x1FFFF


def nfc(text: str) -> str:
    """``text`` in normalisation form C; ``text`` itself if it is in that form already.

    Source: Unicode Standard Annex 15; canonical ordering is D109 of the Unicode Standard.
    """
    if text.isascii() or unicodedata.is_normalized("NFC", text):
        return text
    if _MAYBE_MARKS.search(text):
        text = _long_mark_runs().sub(_sorted_marks, text)
    return unicodedata.normalize("NFC", text)


def _sorted_marks(match: re.Match[str]) -> str:
    # Decomposed first, mark by mark: a few marks of class 0 decompose into marks of two classes. One list for each
    # class keeps the order within it, as canonical ordering must, and takes linear time.
    by_class: dict[int, list[str]] = {}
    for mark in match[0]:
        for part, combining_class in _decomposed(mark):
            by_class.setdefault(combining_class, []).append(part)
    return "".join("".join(by_class[one]) for one in sorted(by_class))


@cache
def _decomposed(mark: str) -> tuple[tuple[str, int], ...]:
    return tuple((part, unicodedata.combining(part)) for part in unicodedata.normalize("NFD", mark))


@cache
def _long_mark_runs() -> re.Pattern[str]:
    """Matches runs of characters whose decomposition is combining marks only."""
    ranges: list[list[int]] = []
    combining, decomposition = unicodedata.combining, unicodedata.decomposition
    for code, character in enumerate(map(chr, range(_LAST_MARK + 1))):
        if not combining(character) and not decomposition(character):
            continue
        if all(map(combining, unicodedata.normalize("NFD", character))):
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1][1] = code
            else:
                ranges.append([code, code])
    marks = "".join(f"{re.escape(chr(first))}-{re.escape(chr(last))}" for first, last in ranges)
    return re.compile(f"[{marks}]{{{_LONG_RUN},}}")
