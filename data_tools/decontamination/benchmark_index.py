"""n-grams of benchmark items, and the stretches of texts that share them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from data_tools import _native
from data_tools.decontamination.matches import Match
from data_tools.errors import DataError
from data_tools.text.characters import character_table
from data_tools.text.normalized import normalize, prepare, sources_of_normalized


@dataclass(frozen=True, kw_only=True)
class DecontaminationConfig:
    """Source: Brown et al. 2020 (arXiv 2005.14165), appendix C: 13-grams."""

    num_words: int = 13
    """Words in an n-gram; symbols do not count, a CJK character is a word."""
    min_words: int = 6
    """Items with fewer words than this are left out."""
    short_num_words: int | None = None
    """Words in an n-gram of items that are shorter than `num_words`; None finds such an item only whole."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_words <= self.num_words:
            raise DataError(f"decontamination: min_words={self.min_words} must be from 1 to num_words={self.num_words}")
        if self.short_num_words is not None and not self.min_words <= self.short_num_words <= self.num_words:
            raise DataError(
                f"decontamination: short_num_words={self.short_num_words} must be from min_words={self.min_words} to "
                f"num_words={self.num_words}"
            )


@dataclass(frozen=True)
class BenchmarkItem:
    """One question, answer or prompt of a benchmark."""

    benchmark: str
    name: str
    text: str


class BenchmarkIndex:
    """n-grams of all ``items``, in normalised form: case, Unicode form, white space and symbols do not matter.

    A text longer than memory allows may be searched in parts that overlap by `num_words` - 1 words.

    Attributes:
        items: those that are searched for.
        left_out: those too short for it.
        num_whole: how many are found only whole.
    """

    def __init__(
        self, items: Iterable[BenchmarkItem], config: DecontaminationConfig | None = None, threads: int = 1
    ) -> None:
        self.config = config or DecontaminationConfig()
        self.threads = threads
        self.items: list[BenchmarkItem] = []
        self.left_out: list[BenchmarkItem] = []
        self.num_whole = 0
        config = self.config
        self._index = _native.NgramIndex(config.num_words, config.min_words, config.short_num_words or config.num_words)
        for item in items:
            num_ngrams = self._index.add(character_table(), normalize(item.text), len(self.items))
            if num_ngrams == 0:
                self.left_out.append(item)
                continue
            self.num_whole += num_ngrams == 1
            self.items.append(item)

    def __len__(self) -> int:
        """Number of different n-grams."""
        return len(self._index)

    def find(self, texts: Sequence[str]) -> list[list[Match]]:
        """The stretches of each text that stand in items: n-grams that overlap or touch are one match.

        Returns:
            For each text its matches, ordered by item and place.
        Raises:
            UnicodeEncodeError: a text holds a lone surrogate.
        """
        prepared, flags = prepare(texts, self.threads)
        table = self._index.find(character_table(), prepared, flags, self.threads)
        found: list[list[Match]] = [[] for _ in texts]
        order = np.lexsort((table[:, 2], table[:, 1], table[:, 0]))
        for (text, item), rows in groupby(table[order].tolist(), key=lambda row: (row[0], row[1])):
            spans = _merged([(start, end) for _, _, start, end in rows])
            if flags[text]:
                spans = _spans_before_normalization(texts[text], prepared[text], spans)
            source = self.items[item]
            found[text] += [Match(source.benchmark, source.name, start, end) for start, end in spans]
        return found


def _merged(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans, ascending by start, with those that share characters or adjoin made one."""
    out: list[tuple[int, int]] = []
    for start, end in spans:
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((start, end))
    return out


def _spans_before_normalization(text: str, normalized: str, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Where in ``text`` stands what became the given spans of ``normalized``."""
    starts, ends = sources_of_normalized(text)
    assert len(starts) == len(normalized)
    return [(starts[start], ends[end - 1]) for start, end in spans]
