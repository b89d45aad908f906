"""Qwen's pattern in C++ against the regular expression, and pre-tokens counted."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_tools import _native
from data_tools.tokenizer.pretokens import pattern_kinds
from data_tools.tokenizer.qwen import PATTERN

# What the alternatives of the pattern meet on, and every character that Python knows.
TRAPS = st.sampled_from(list("'sStTrReEvVmMlLdD \t\r\n\u00a0\u3000\u2028\x1c\x851²Ⅷ٣aé你ทา\u0e31\u0301.,!_-😀ſK"))
TEXT = st.lists(st.one_of(TRAPS, st.characters(exclude_categories=["Cs", "Cn"])), max_size=40).map("".join)


@settings(max_examples=200)
@given(TEXT)
@example("'ſ 'Sx ''ve'LL 'l l're'RE's's")
@example("  \n \n   x\t\ty \r\n\r\n  . \n\n")
@example("a  b   ")
@example("\u0301\u0301a \u0301a")
def test_pretokens_are_those_of_the_pattern(text: str) -> None:
    found = _native.pretokens(pattern_kinds(), text)
    assert found == regex.findall(PATTERN, text)
    assert "".join(found) == text


def test_kinds_are_those_of_the_regular_expressions() -> None:
    known = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) not in ("Cn", "Cs")]
    for pattern, kind in ((r"\s", 1), (r"\p{L}", 2), (r"\p{N}", 3)):
        expected = set(regex.findall(pattern, "".join(known)))
        assert {character for character in known if pattern_kinds()[ord(character)] == kind} == expected


def test_wrong_tables_are_refused() -> None:
    short = np.zeros(5, dtype=np.uint8)
    with pytest.raises(ValueError, match="a byte for each code point"):
        _native.pretokens(short, "x")
    with pytest.raises(ValueError, match="kinds has 5 bytes"):
        _native.PretokenCounts(short, 1)
    with pytest.raises(TypeError):
        _native.PretokenCounts(np.zeros(0x110000), 1)  # type: ignore[arg-type]
    with pytest.raises(UnicodeEncodeError):
        _native.PretokenCounts(pattern_kinds(), 1).add(["\ud800"], 0)
    with pytest.raises(ValueError, match="text 1 is not valid UTF-8 at byte 0"):
        _native.PretokenCounts(pattern_kinds(), 1).add([b"x", b"\xff"], 0)
