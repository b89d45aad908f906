"""NFC equals the standard library's and takes linear time."""

import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.text.normalization import nfc

# Marks of several combining classes, among them some that decompose and some of class 0 that decompose into marks.
MARKS = "\u0301\u0316\u0327\u0308\u0344\u0345\u0f71\u0f73\u0f75\u0f81\u1dce\u3099\u20d0"
RUN = st.builds(lambda base, marks: base + marks, st.sampled_from("aeı가각は"), st.text(MARKS, max_size=150))


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(), st.lists(RUN, max_size=4).map("".join)))
def test_equals_unicodedata(text: str) -> None:
    assert nfc(text) == unicodedata.normalize("NFC", text)


def test_normalized_text_is_returned_as_it_is() -> None:
    text = "caf\u00e9 你好"
    assert nfc(text) is text


@pytest.mark.parametrize("marks", ["\u0301\u0316", "\u0f73", "\u0344\u0316", "\u200d", " ", "가"])
def test_time_is_linear(marks: str) -> None:
    def seconds(size: int) -> float:
        text = "a" + marks * size + "e\u0301"
        times = []
        for _ in range(3):
            start = time.process_time()
            nfc(text)
            times.append(time.process_time() - start)
        return min(times)

    nfc("a" + "\u0301\u0316" * 100)  # The pattern is built once.
    # The standard library alone needs a hundred times as long for ten times the text. Slow spells of the machine pass.
    assert any(seconds(200_000) < 20 * seconds(20_000) + 0.01 for _ in range(5))
