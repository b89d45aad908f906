"""What a completion answers, and whether that is what was expected."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from qwen_megatron.evaluation.latex import boxed, is_equal_latex
from qwen_megatron.evaluation.react import ALL_TOOLS, TOOL_NAMES, tool_fields

# Fields that a scorer makes out of a record's, which templates may name.
MADE_FIELDS: dict[str, tuple[str, ...]] = {
    "letter": (),
    "gsm8k": ("solution", "final"),
    "math": ("boxed",),
    "answer_is": (),
    "number": (),
    "program": (),
    "react": (ALL_TOOLS, TOOL_NAMES),
}

# A sign belongs to a number unless something stands before it that could be its left side.
NUMBER = re.compile(r"(?<![\d.)a-zA-Z])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?%?|\d+(?:\.\d+)?(?:/\d+)?%?")
MIXED = re.compile(r"(-?)(\d+)\s*\(\(?(\d+)\)?/\(?(\d+)\)?\)")
PLAIN_FRACTION = re.compile(r"\((-?\d+)\)\s*/\s*\((\d+)\)|\((-?\d+)/(\d+)\)")
CALCULATION = re.compile(r"<<[^<>]*>>")
ANSWER_IS = re.compile(r"answer is:?", re.IGNORECASE)
# Of the benchmark that has numbers with long fractions; the others' are far apart.
TOLERANCE = Fraction(1, 1000)
LETTER_PATTERNS = (
    r"(?:[Aa]nswer|[Cc]hoice|[Oo]ption|答案|选择?|选项)\s*(?:is|:|：|be|应?[该当]?[是为]|为)?[\s:：]*(?:[Oo]ption\s*)?[\(（]?({letters})(?![A-Za-z])",
    r"[\(（]?(?<![A-Za-z])({letters})(?![A-Za-z])[\)）]?\s*(?:is|选?项?是?)?\s*(?:the\s+)?(?:correct|right|正确)",
    r"^\s*[\(（]?({letters})(?![A-Za-z])",
    r"(?<![A-Za-z])({letters})(?![A-Za-z=])",
)


class UnusableRecord(Exception):
    """A record lacks what its scorer needs; the message says what and how it must look."""


def made_fields(scorer: str, record: Mapping[str, Any]) -> dict[str, str]:
    """Fields that a scorer makes out of a record.

    Args:
        scorer: A task file's.
        record: With the fields that the task file names.
    Raises:
        UnusableRecord: if the record lacks what they are made of.
    """
    if scorer == "gsm8k":
        solution, found, final = str(record["answer"]).rpartition("####")
        if not found or number_of(final) is None:
            raise UnusableRecord("'answer' must end in a line `#### NUMBER`, as in the released files")
        return {"solution": CALCULATION.sub("", solution).strip(), "final": final.strip()}
    if scorer == "math":
        answer = boxed(str(record["solution"]))
        if answer is None:
            raise UnusableRecord("'solution' must have its answer in \\boxed{...}")
        return {"boxed": answer}
    if scorer == "react":
        return tool_fields(record)
    return {}


def check_target(scorer: str, target: str, choices: Sequence[str]) -> None:
    """Refuses what no answer could equal.

    Raises:
        UnusableRecord: saying how it must look.
    """
    if scorer == "number" and number_of(target) is None:
        raise UnusableRecord(f"the expected answer {target[:60]!r} must be a number")
    if scorer == "letter" and target.strip() not in [choice.strip() for choice in choices]:
        words = ", ".join(choice.strip() for choice in choices)
        raise UnusableRecord(f"the expected answer {target[:60]!r} must be one of {words}")
    if not target.strip() and scorer not in ("program", "react"):
        raise UnusableRecord("the expected answer is empty")


def is_correct(scorer: str, completion: str, target: str, choices: Sequence[str] = ()) -> bool:
    """Whether a completion gives the expected answer.

    Args:
        scorer: gsm8k, number: the last number counts. answer_is: what follows the last "answer is". math: the last
            \\boxed, or what follows the last "answer is". letter: the letter that is named.
        completion: Of the model.
        target: What is expected.
        choices: Letters, for `letter`.
    """
    if scorer in ("gsm8k", "number"):
        return is_same_number(last_number(completion), target)
    if scorer == "math":
        found = boxed(completion) or after_answer_is(completion)
        return found is not None and is_equal_latex(found, target)
    if scorer == "answer_is":
        found = after_answer_is(completion)
        return found is not None and bare(found) == bare(target)
    if scorer == "letter":
        return named_letter(completion, [choice.strip() for choice in choices]) == target.strip()
    raise ValueError(f"completions are not compared by {scorer}")


def last_number(text: str) -> str | None:
    """The last number of a text, as written; None if there is none."""
    found = NUMBER.findall(text)
    return found[-1] if found else None


def number_of(text: str) -> Fraction | None:
    """The value of a number: digits with commas, decimals, fractions, mixed ones as `1(1/2)`, per cent."""
    text = text.strip().rstrip(".").replace(",", "").replace("$", "")
    percent = text.endswith("%")
    text = text.removesuffix("%").strip()
    value = _mixed(text) if "(" in text else _simple(text)
    return value / 100 if percent and value is not None else value


def _mixed(text: str) -> Fraction | None:
    if mixed := MIXED.fullmatch(text):
        whole, upper, lower = (int(part) for part in mixed.groups()[1:])
        size = whole + Fraction(upper, lower) if lower else None
        return -size if mixed[1] and size is not None else size
    if fraction := PLAIN_FRACTION.fullmatch(text):
        upper, lower = (int(part) for part in fraction.groups() if part is not None)
        return Fraction(upper, lower) if lower else None
    return None


def _simple(text: str) -> Fraction | None:
    try:
        if len(text) < 100 and "e" not in text.lower():
            return Fraction(text)
        # Of a number like 1e9999999 the digits would be written out.
        number = float(text)
        return Fraction(number) if math.isfinite(number) else None
    except (ValueError, ZeroDivisionError):
        return None


def is_same_number(found: str | None, target: str) -> bool:
    """Whether two numbers are the same to a thousandth; of 25 % both 25 and 0.25 are taken."""
    if found is None:
        return False
    one, other = number_of(found), number_of(target)
    if one is None or other is None:
        return False
    ones = {one, one * 100} if found.strip().endswith("%") else {one}
    others = {other, other * 100} if target.strip().endswith("%") else {other}
    return any(abs(left - right) < TOLERANCE for left in ones for right in others)


def after_answer_is(text: str) -> str | None:
    """What follows the last "answer is" on its line; None if nothing does."""
    found = list(ANSWER_IS.finditer(text))
    if not found:
        return None
    line = text[found[-1].end() :].strip().partition("\n")[0]
    return line.partition("I hope it is correct")[0].strip().rstrip(".").strip() or None


def bare(text: str) -> str:
    """An answer without brackets around a single letter, stops and outer white space."""
    text = text.strip().rstrip(".").strip()
    letter = re.fullmatch(r"\(?([A-Z])\)?", text)
    return letter[1] if letter else " ".join(text.split())


def named_letter(text: str, letters: Sequence[str]) -> str | None:
    """The letter that an answer names: as "the answer is B", "B is correct", a B at its beginning, any B."""
    alternatives = "|".join(map(re.escape, letters))
    for pattern in LETTER_PATTERNS:
        if found := re.search(pattern.replace("{letters}", alternatives), text):
            return found[1]
    return None


FENCE = re.compile(r"```[A-Za-z0-9_+-]*[ \t]*\r?\n(.*?)(?:\n```|\Z)", re.DOTALL)


def code_of_reply(text: str) -> str:
    """The code of a reply in chat: the first fenced block, or all of it; a bare body is indented."""
    fenced = FENCE.search(text)
    code = fenced[1] if fenced else text
    if not re.search(r"^\s*(?:async\s+)?(?:def|class|import|from)\s", code, re.MULTILINE) and not code.startswith(
        (" ", "\t")
    ):
        code = "\n".join(f"    {line}" for line in code.splitlines())
    return code
