"""n-grams of benchmark items, and the stretches of texts that share them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt

from data_tools import _native
from data_tools.decontamination.matches import Match
from data_tools.errors import DataError
from data_tools.text.characters import character_table
from data_tools.text.normalized import normalize, prepare


@dataclass(frozen=True, kw_only=True)
class DecontaminationConfig:
    """Source: Brown et al. 2020 (arXiv 2005.14165), appendix C: 13-grams."""

    num_words: int = 13
    """Words in an n-gram; symbols do not count, a CJK character is a word."""
    min_words: int = 6
    """Items shorter than `num_words` must be there whole; those with fewer words than this are left out."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_words <= self.num_words:
            raise DataError(f"decontamination: min_words={self.min_words} must be from 1 to num_words={self.num_words}")


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
    """

    def __init__(
        self, items: Iterable[BenchmarkItem], config: DecontaminationConfig | None = None, threads: int = 1
    ) -> None:
        self.config = config or DecontaminationConfig()
        self.threads = threads
        self.items: list[BenchmarkItem] = []
        self.left_out: list[BenchmarkItem] = []
        self._index = _native.NgramIndex(self.config.num_words, self.config.min_words)
        for item in items:
            if self._index.add(character_table(), normalize(item.text), len(self.items)):
                self.items.append(item)
            else:
                self.left_out.append(item)

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
    """Spans of ``normalized`` in ``text``: word by word if both have as many words, else the whole text."""
    before, after = _word_spans(text), _word_spans(normalized)
    if len(before) != len(after):
        return [(0, len(text))]
    starts = {int(start): int(first) for (start, _), (first, _) in zip(after, before, strict=True)}
    ends = {int(end): int(last) for (_, end), (_, last) in zip(after, before, strict=True)}
    return [(starts[start], ends[end]) for start, end in spans]


def _word_spans(text: str) -> npt.NDArray[np.int64]:
    """[n, 2] first and end character of each word."""
    spans = []
    position = 0
    for word in _native.words(character_table(), text):
        position = text.index(word, position)
        spans.append((position, position + len(word)))
        position += len(word)
    return np.array(spans, dtype=np.int64).reshape(-1, 2)
