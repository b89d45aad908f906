"""The rules: what each one measures in a batch of texts, and which texts break it."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_tools.filters.config import C4, FineWeb, GopherQuality, GopherRepetition
from data_tools.text.statistics import TextStatistics

Values = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


class Verdict(NamedTuple):
    """One rule's verdict on n texts."""

    reason: str
    values: Values
    """[n] what was measured."""
    drops: Mask
    """[n] True where the rule drops the text."""
    limit: float = 0.0
    """What the values are compared with."""
    is_least: bool = False
    """Whether values below the limit are dropped, not those above."""
    asked: Mask | bool = True
    """[n] which texts this limit is for; True for all."""


def ratio(numerator: npt.NDArray[np.int64], denominator: npt.NDArray[np.int64]) -> Values:
    """[n] quotients, 0 where there is nothing to divide by."""
    return numerator / np.maximum(denominator, 1)


def _above(reason: str, values: Values, limit: float | None, where: Mask | bool = True) -> Iterator[Verdict]:
    if limit is not None:
        yield Verdict(reason, values, (values > limit) & where, limit, asked=where)


def _below(reason: str, values: Values, limit: float | None, where: Mask | bool = True) -> Iterator[Verdict]:
    if limit is not None:
        yield Verdict(reason, values, (values < limit) & where, limit, is_least=True, asked=where)


def gopher_quality(statistics: TextStatistics, config: GopherQuality, is_cjk: Mask) -> Iterator[Verdict]:
    """Length, word length, symbols, bullets, ellipses, letters, stop words."""
    plain = statistics["plain_words"].astype(np.float64)
    yield from _below("gopher_quality_few_words", plain, config.min_words, ~is_cjk)
    yield from _below("gopher_quality_few_words", plain, config.cjk_min_words, is_cjk)
    yield from _above("gopher_quality_many_words", plain, config.max_words, ~is_cjk)
    yield from _above("gopher_quality_many_words", plain, config.cjk_max_words, is_cjk)
    length = ratio(statistics["plain_word_characters"], statistics["plain_words"])
    yield from _below("gopher_quality_short_words", length, config.min_mean_word_length, ~is_cjk)
    yield from _above("gopher_quality_long_words", length, config.max_mean_word_length, ~is_cjk)
    words, lines = statistics["words"], statistics["lines"]
    yield from _above("gopher_quality_hashes", ratio(statistics["hashes"], words), config.max_symbol_ratio)
    yield from _above("gopher_quality_ellipses", ratio(statistics["ellipses"], words), config.max_symbol_ratio)
    yield from _above("gopher_quality_bullet_lines", ratio(statistics["bullet_lines"], lines), config.max_bullet_lines)
    ellipsis_lines = ratio(statistics["ellipsis_lines"], lines)
    yield from _above("gopher_quality_ellipsis_lines", ellipsis_lines, config.max_ellipsis_lines)
    yield from _below("gopher_quality_letters", _letters(statistics, config, is_cjk), config.min_letter_words)
    yield from _below("gopher_quality_stop_words", statistics["stop_words"].astype(np.float64), config.min_stop_words)


def _letters(statistics: TextStatistics, config: GopherQuality, is_cjk: Mask) -> Values:
    """[n] share of the words that have a letter."""
    if config.letter_words == "segmented":
        return ratio(statistics["letter_words"], np.where(is_cjk, statistics["plain_words"], statistics["words"]))
    cjk = ratio(statistics["letter_words"], statistics["plain_words"])
    return np.where(is_cjk, cjk, ratio(statistics["spaced_letter_words"], statistics["spaced_words"]))


def gopher_repetition(statistics: TextStatistics, config: GopherRepetition, is_cjk: Mask) -> Iterator[Verdict]:
    """Duplicate paragraphs, lines and n-grams."""

    def share(column: str) -> Values:
        return ratio(statistics[column], statistics["characters"])

    paragraphs = ratio(statistics["duplicate_paragraphs"], statistics["paragraphs"])
    yield from _above("gopher_repetition_paragraphs", paragraphs, config.max_duplicate_paragraphs)
    yield from _above(
        "gopher_repetition_paragraph_characters",
        share("duplicate_paragraph_characters"),
        config.max_duplicate_paragraph_characters,
    )
    lines = ratio(statistics["duplicate_segments"], statistics["segments"])
    yield from _above("gopher_repetition_lines", lines, config.max_duplicate_lines)
    yield from _above(
        "gopher_repetition_line_characters",
        share("duplicate_segment_characters"),
        config.max_duplicate_line_characters,
    )
    for n, limit in config.max_top_grams:
        yield from _above(f"gopher_repetition_top_{n}_gram", share(f"top_{n}_gram"), limit)
    for n, limit in config.max_duplicate_grams:
        yield from _above(f"gopher_repetition_{n}_grams", share(f"duplicate_{n}_grams"), limit, ~is_cjk)
    for n, limit in config.cjk_max_duplicate_grams:
        yield from _above(f"gopher_repetition_{n}_grams", share(f"duplicate_{n}_grams"), limit, is_cjk)


def c4(pages: npt.NDArray[np.int64], config: C4) -> Iterator[Verdict]:
    """Phrase, curly bracket, sentences; ``pages`` is [n, 3] of the kernel ``clean_c4``."""
    values = pages.astype(np.float64)
    yield from _above("c4_page_phrase", values[:, 0], 0.0)
    yield from _above("c4_curly_bracket", values[:, 1], 0.0 if config.drop_curly_brackets else None)
    yield from _below("c4_few_sentences", values[:, 2], config.min_sentences)


def fineweb(statistics: TextStatistics, config: FineWeb) -> Iterator[Verdict]:
    """Punctuation at line ends, short lines, duplicate lines, newlines."""
    lines = statistics["full_lines"]
    yield from _below("fineweb_empty", lines.astype(np.float64), 1.0)
    yield from _below("fineweb_punctuation", ratio(statistics["punctuated_lines"], lines), config.min_punctuated_lines)
    yield from _above("fineweb_short_lines", ratio(statistics["short_lines"], lines), config.max_short_lines)
    duplicates = ratio(statistics["duplicate_full_line_characters"], statistics["characters"] - statistics["newlines"])
    yield from _above("fineweb_duplicate_lines", duplicates, config.max_duplicate_line_characters)
    newlines = ratio(statistics["newlines"], statistics["words"])
    yield from _above("fineweb_newlines", newlines, config.max_newlines_per_word)
