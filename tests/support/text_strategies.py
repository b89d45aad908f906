"""Texts that are likely to hit the rules of segmentation and normalisation."""

from hypothesis import strategies as st

# Repeats, joiners, line ends of every kind, CJK, marks, compatibility and composing characters, astral symbols.
ALPHABET = (
    "aab  b'.,,19#-_\n\n\r\t\x1c\x85\u2028\u2022\u2026.!\u3002\u300d\u2019\u00a0\u4e2d\u6587\u306e\u30ac\uff76\uff9e"
    "\u00e9e\u0301\u0327\u0345\u00df\u01c5\ufb01\u0130\u1e9b\u0323\u0915\u093f\u094d\u093c\uac00\u1100\u1161\u11a8"
    "\u0627\u064e\u0651\u05d0\ufb2a\u200d\u2160\u00bd\U0001f600\ufe0f\U0002f81a\U00011131\U0001d15e"
)
FRAGMENTS = ("the ", "of ", "a b c d e ", "\n\n", "x y\n", "...", "\u6211\u662f\u732b\u3002", "don't ", "3.14 ", "- ")
URLS = ("https", "://", "www.", "a.org/b_(c)?d=1&e=%20", "file:///", "(", ")", "[x](", "Http://a", "\u7f51\u5740")


def texts(max_size: int = 60) -> st.SearchStrategy[str]:
    pieces = st.sampled_from([*ALPHABET, *FRAGMENTS, *URLS]) | st.characters(exclude_categories=("Cs",))
    return st.lists(pieces, max_size=max_size).map("".join)
