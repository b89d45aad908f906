"""All rule filters on batches of texts."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from data_tools import _native
from data_tools.filters import rules
from data_tools.filters.config import C4, FilterConfig
from data_tools.filters.drop import Drop
from data_tools.text.characters import character_table
from data_tools.text.statistics import text_statistics


class FilterSuite:
    """The filters of a configuration, in the order Gopher quality, Gopher repetition, C4, FineWeb.

    Args:
        threads: of the kernels, which run without the GIL.
    """

    def __init__(self, config: FilterConfig | None = None, threads: int = 1) -> None:
        self.config = config or FilterConfig()
        self.threads = threads

    def apply(self, texts: Sequence[str], watch: Callable[[rules.Verdict], object] | None = None) -> list[Drop | None]:
        """Decides on each text: None keeps it, else the first rule it breaks.

        Args:
            texts: the texts.
            watch: is given the verdict of every rule.
        Raises:
            UnicodeEncodeError: a text holds a lone surrogate.
        """
        rules_asked: list[rules.Verdict] = []
        chosen = np.full(len(texts), -1)
        values = np.zeros(len(texts))
        for verdict in self.verdicts(texts):
            if watch is not None:
                watch(verdict)
            new = verdict.drops & (chosen < 0)
            chosen[new] = len(rules_asked)
            values[new] = verdict.values[new]
            rules_asked.append(verdict)

        def decision(index: int, value: float) -> Drop | None:
            if index < 0:
                return None
            rule = rules_asked[index]
            return Drop(rule.reason, value, rule.limit, rule.is_least)

        return [decision(*one) for one in zip(chosen.tolist(), values.tolist(), strict=True)]

    def verdicts(self, texts: Sequence[str]) -> Iterator[rules.Verdict]:
        """Every rule's verdict on every text, in order."""
        config = self.config
        quality, fineweb = config.gopher_quality, config.fineweb
        statistics = text_statistics(
            texts,
            quality.stop_words if quality else (),
            fineweb.short_line_length if fineweb else 30,
            self.threads,
        )
        is_cjk = (statistics["cjk_words"] > 0) & (
            statistics["cjk_words"] >= config.cjk_share * statistics["plain_words"]
        )
        if quality:
            yield from rules.gopher_quality(statistics, quality, is_cjk)
        if config.gopher_repetition:
            yield from rules.gopher_repetition(statistics, config.gopher_repetition, is_cjk)
        if config.c4:
            pages, _ = _clean_c4(texts, config.c4, want_kept=False, threads=self.threads)
            yield from rules.c4(pages, config.c4)
        if fineweb:
            yield from rules.fineweb(statistics, fineweb)


def c4_clean(texts: Sequence[str], config: C4 | None = None, threads: int = 1) -> list[str]:
    """The lines of each text that C4's rules keep, without citation marks.

    What `FilterSuite` drops as c4_page_phrase or c4_curly_bracket is cut where the phrase or bracket was met.
    """
    return _clean_c4(texts, config or C4(), want_kept=True, threads=threads)[1]


def _clean_c4(
    texts: Sequence[str], config: C4, want_kept: bool, threads: int
) -> tuple[npt.NDArray[np.int64], list[str]]:
    return _native.clean_c4(
        character_table(),
        texts,
        config.min_words_per_line,
        config.max_word_length,
        config.page_phrase,
        list(config.line_phrases),
        want_kept,
        threads,
    )
