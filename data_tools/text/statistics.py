"""Statistics of texts, counted in one native call, from which the rule filters decide."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_tools import _native
from data_tools.text.characters import character_table

# Column: what it counts. Lengths are in code points. "Line" is a line of str.splitlines(), "segment" a piece between
# runs of newlines, "full line" a segment that is not blank. A duplicate is an element equal to an earlier one.
COLUMNS = {
    "characters": "code points of the text",
    "words": "words, symbols included",
    "plain_words": "words with a letter, a number or a CJK character",
    "plain_word_characters": "characters in plain words",
    "cjk_words": "words that are one CJK character",
    "letter_words": "words with a letter, CJK included",
    "spaced_words": "words between white space",
    "spaced_letter_words": "words between white space with a letter, CJK included",
    "stop_words": "different stop words",
    "hashes": "characters #",
    "ellipses": "... and U+2026",
    "lines": "lines",
    "bullet_lines": "lines that start with U+2022 or -, after white space",
    "ellipsis_lines": "lines that end with an ellipsis, before white space",
    "paragraphs": "pieces between runs of two or more newlines of the stripped text",
    "duplicate_paragraphs": "duplicate paragraphs",
    "duplicate_paragraph_characters": "characters in duplicate paragraphs",
    "segments": "segments, with an empty one at each end where the text has a newline",
    "duplicate_segments": "duplicate segments",
    "duplicate_segment_characters": "characters in duplicate segments",
    "full_lines": "full lines",
    "punctuated_lines": "full lines that end a sentence",
    "short_lines": "full lines of at most short_line_length characters, a CJK character counting as three",
    "duplicate_full_line_characters": "characters in duplicate full lines",
    "newlines": "newlines",
    "top_2_gram": "occurrences times length of the most frequent 2-gram, words joined by spaces (none beside CJK)",
    "top_3_gram": "the same of 3-grams",
    "top_4_gram": "the same of 4-grams",
    **{f"duplicate_{n}_grams": f"characters in {n}-grams seen before, each counted once" for n in range(5, 11)},
}


@dataclass(frozen=True)
class TextStatistics:
    """Counts of n texts, by column name of `COLUMNS`."""

    table: npt.NDArray[np.int64]
    """[n, 34]"""

    def __getitem__(self, column: str) -> npt.NDArray[np.int64]:
        """[n] int64, one column."""
        return self.table[:, _INDEX[column]]


_INDEX = {column: index for index, column in enumerate(COLUMNS)}


def text_statistics(
    texts: Sequence[str], stop_words: Sequence[str] = (), short_line_length: int = 30, threads: int = 1
) -> TextStatistics:
    """Statistics of each text.

    n-grams are counted within the first 2**20 words. Duplicates are found by 64-bit hashes.

    Args:
        stop_words: at most 64, compared as they are written.
        short_line_length: in characters.
        threads: of the kernel, which runs without the GIL.
    Raises:
        ValueError: more than 64 stop words.
        UnicodeEncodeError: a text holds a lone surrogate.
    Source: Rae et al. 2021 (arXiv 2112.11446), appendix A1; Penedo et al. 2024 (arXiv 2406.17557), section 3.6.
    """
    return TextStatistics(_native.statistics(character_table(), texts, list(stop_words), short_line_length, threads))
