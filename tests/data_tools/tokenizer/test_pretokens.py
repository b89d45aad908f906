"""Qwen's pattern in C++ against the regular expression, and pre-tokens counted."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_tools import _native
from data_tools.tokenizer.qwen import PATTERN
from tests.data_tools.tokenizer.pattern_sets import PATTERNS, code_points

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
    found = _native.pretokens(text)
    assert found == regex.findall(PATTERN, text)
    assert "".join(found) == text


@pytest.mark.parametrize("others", ["", "\v\f", "é", "ſ\u3000"])
def test_all_neighbours_wherever_they_stand(others: str) -> None:
    # Bytes are looked at in blocks, which begin where a pre-token does: five characters in all orders, in a row.
    chooser = random.Random(1)
    pieces = ["".join(piece) for piece in itertools.product("al'1 \t\n\r!", repeat=5)]
    for _ in range(2):
        chooser.shuffle(pieces)
        text = "".join(
            piece + chooser.choice(others) if others and chooser.random() < 0.05 else piece for piece in pieces
        )
        assert _native.pretokens(text) == regex.findall(PATTERN, text)


@pytest.mark.parametrize("run", ["a", "1", " ", "\n", " \n", "!", "a!", "'s", "'l", "\t"])
def test_runs_over_several_blocks(run: str) -> None:
    for size in range(50, 140):
        for left, right in itertools.product(("", "a", "!", "1\n", "x "), ("", "a", "!", "\n", " x", "é", "\u3000")):
            text = left + (run * size)[:size] + right + "." * 70
            assert _native.pretokens(text) == regex.findall(PATTERN, text), text


def test_kinds_are_those_of_tiktoken() -> None:
    kinds = _native.pattern_kinds()
    assert len(kinds) == 0x110000
    for kind, pattern in enumerate(PATTERNS.values(), start=1):
        assert np.flatnonzero(kinds == kind).tolist() == code_points(pattern), pattern


def test_wrong_texts_are_refused() -> None:
    with pytest.raises(UnicodeEncodeError):
        _native.PretokenCounts(1).add(["\ud800"], 0)
    with pytest.raises(ValueError, match="text 1 is not valid UTF-8 at byte 0"):
        _native.PretokenCounts(1).add([b"x", b"\xff"], 0)
