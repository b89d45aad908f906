"""Answers of competition mathematics, which are LaTeX: found in a solution, and compared as far as notation goes.

What Hendrycks et al. (arXiv 2103.03874) count as the same: spaces and spacing commands, \\left and \\right, units in
\\text, kinds of \\frac, a leading zero, `x =` in front; here numbers of the same value besides.
"""

from __future__ import annotations

import re
from fractions import Fraction

REMOVED = re.compile(r"\\left|\\right|\\!|\\,|\\;|\\:|\\ |\\\$|\$|\\%|%|\^\{?\\circ\}?|\\degree|\s|,(?=\d{3}(?:\D|$))")
UNIT = re.compile(r"\\(?:text|mbox|mathrm)\{\s*[^{}]*\}$")
WRAPPED = re.compile(r"\\(?:text|mbox|textbf|mathrm)\{([^{}]*)\}")
SHORT_FRACTION = re.compile(r"\\frac(\d)(\d)")
SHORT_UPPER = re.compile(r"\\frac(\d)\{")
SHORT_ROOT = re.compile(r"\\sqrt(\d)")
SLASH = re.compile(r"(-?)(\d+)/(\d+)")
FRACTION = re.compile(r"(-?)\\frac\{(-?\d+)\}\{(\d+)\}")
DECIMAL = re.compile(r"-?\d*\.?\d+")


def boxed(text: str) -> str | None:
    """What stands in the last \\boxed or \\fbox of a text; None if there is none, or it is not closed."""
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        return None
    rest = text[start:].partition("boxed" if text.startswith("\\boxed", start) else "fbox")[2]
    if not rest.startswith("{"):
        # `\boxed 5`, as some solutions write.
        return rest.strip().split("$")[0].strip() or None
    depth = 0
    for at, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[1:at]
    return None


def is_equal_latex(found: str, expected: str) -> bool:
    """Whether two answers are the same but for notation."""
    one, other = normal(found), normal(expected)
    if one == other:
        return True
    left, right = value(one), value(other)
    return left is not None and left == right


def normal(text: str) -> str:
    """One notation of an answer for all of the same meaning, as far as is looked for."""
    text = text.strip().rstrip(".")
    text = UNIT.sub("", text) if UNIT.sub("", text).strip() else text
    text = WRAPPED.sub(r"\1", text)
    text = text.replace("\\tfrac", "\\frac").replace("\\dfrac", "\\frac").replace("\\cdot", "*")
    text = REMOVED.sub("", text)
    text = SHORT_FRACTION.sub(r"\\frac{\1}{\2}", text)
    text = SHORT_UPPER.sub(r"\\frac{\1}{", text)
    text = SHORT_ROOT.sub(r"\\sqrt{\1}", text)
    if re.fullmatch(r"[A-Za-z]=.+", text):
        text = text[2:]
    if whole := SLASH.fullmatch(text):
        text = f"{whole[1]}\\frac{{{whole[2]}}}{{{whole[3]}}}"
    return re.sub(r"(?<!\d)\.(?=\d)", "0.", text)


def value(text: str) -> Fraction | None:
    """The number that an answer is; None if it is none."""
    if len(text) > 100:
        return None
    if found := FRACTION.fullmatch(text):
        upper, lower = int(found[2]), int(found[3])
        return Fraction(-upper if found[1] else upper, lower) if lower else None
    return Fraction(text) if DECIMAL.fullmatch(text) else None
