"""Thresholds of the rule filters; the defaults are the published ones.

A text counts as CJK if at least `cjk_share` of its plain words are Chinese characters or kana. Its words are characters
then, and the thresholds named `cjk_*` hold in place of the published ones, which were found on English.
"""

from dataclasses import field
from typing import Literal

from data_tools.settings.records import record

ENGLISH_STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
# The most frequent function characters of written Chinese, and particles of Japanese.
CJK_STOP_WORDS = tuple("的是不了在有和这這个個人为為之以与與也就而及中上对對可要于於のはをにがでとも")


@record
class GopherQuality:
    """Source: Rae et al. 2021 (arXiv 2112.11446), appendix A1."""

    min_words: int | None = 50
    """Plain words: those with a letter or a number."""
    max_words: int | None = 100_000
    cjk_min_words: int | None = 75
    """Characters and other plain words; a Chinese word has about 1.5 characters."""
    cjk_max_words: int | None = 150_000
    min_mean_word_length: float | None = 3.0
    """Characters per plain word; not asked of CJK texts."""
    max_mean_word_length: float | None = 10.0
    max_symbol_ratio: float | None = 0.1
    """Hash signs per word, and ellipses per word."""
    max_bullet_lines: float | None = 0.9
    """Share of the lines."""
    max_ellipsis_lines: float | None = 0.3
    """Share of the lines."""
    min_letter_words: float | None = 0.8
    """Share of the words with a letter among those that `letter_words` says; in CJK texts among the plain words."""
    letter_words: Literal["white_space", "segmented"] = "white_space"
    """What lies between white space, as in Gopher, or words with every symbol as one of them, as in datatrove."""
    min_stop_words: int | None = 2
    """Different ones of `stop_words`, case-sensitive."""
    stop_words: tuple[str, ...] = ENGLISH_STOP_WORDS + CJK_STOP_WORDS
    """At most 64."""


@record
class GopherRepetition:
    """Shares of all characters, unless said otherwise. Source: Rae et al. 2021 (arXiv 2112.11446), table A1."""

    max_duplicate_paragraphs: float | None = 0.30
    """Share of the paragraphs."""
    max_duplicate_paragraph_characters: float | None = 0.20
    max_duplicate_lines: float | None = 0.30
    """Share of the pieces between newlines."""
    max_duplicate_line_characters: float | None = 0.20
    max_top_grams: tuple[tuple[int, float], ...] = ((2, 0.20), (3, 0.18), (4, 0.16))
    """(n, characters in the most frequent n-gram), n from 2 to 4."""
    max_duplicate_grams: tuple[tuple[int, float], ...] = (
        (5, 0.15),
        (6, 0.14),
        (7, 0.13),
        (8, 0.12),
        (9, 0.11),
        (10, 0.10),
    )
    """(n, characters in n-grams seen before), n from 5 to 10."""
    cjk_max_duplicate_grams: tuple[tuple[int, float], ...] = ((8, 0.15), (9, 0.14), (10, 0.13))
    """In place of the former: eight characters are about as long as five words."""


@record
class C4:
    """Source: Raffel et al. 2020 (JMLR 21-140), section 2.2; the list of bad words is left out."""

    min_sentences: int = 5
    """In the lines that stay."""
    min_words_per_line: int = 3
    """A line with fewer goes; a CJK character counts as a word."""
    max_word_length: int = 1000
    """A line with a longer word goes; characters between white space, without CJK."""
    page_phrase: str = "lorem ipsum"
    """Drops the text. Lower case."""
    line_phrases: tuple[str, ...] = (
        "javascript",
        "terms of use",
        "privacy policy",
        "cookie policy",
        "uses cookies",
        "use of cookies",
        "use cookies",
    )
    """Drop the line. Lower case; the first one is looked for before curly brackets are."""
    drop_curly_brackets: bool = True


@record
class FineWeb:
    """Source: Penedo et al. 2024 (arXiv 2406.17557), section 3.6."""

    min_punctuated_lines: float | None = 0.12
    """Share of the lines that are not blank."""
    max_short_lines: float | None = 0.67
    """Share of the lines that are not blank."""
    short_line_length: int = 30
    """Characters; a CJK character counts as three."""
    max_duplicate_line_characters: float | None = 0.01
    """Share of the characters that are not newlines."""
    max_newlines_per_word: float | None = 0.3


@record
class FilterConfig:
    """The filters in the order they are asked; None leaves one out."""

    gopher_quality: GopherQuality | None = field(default_factory=GopherQuality)
    gopher_repetition: GopherRepetition | None = field(default_factory=GopherRepetition)
    c4: C4 | None = field(default_factory=C4)
    fineweb: FineWeb | None = field(default_factory=FineWeb)
    cjk_share: float = 0.3
    """Share of CJK characters among the plain words from which a text is CJK."""
