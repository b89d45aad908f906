"""A vocabulary continued on a corpus: its tokens stay, byte-pair merges that the corpus asks for come after them.

Source: Qwen Technical Report (arXiv 2309.16609), section 2.2: cl100k_base, augmented with Chinese and other languages,
numbers split into digits. Byte-pair encoding: Sennrich et al. 2016 (arXiv 1508.07909).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from data_tools import _native
from data_tools.errors import DataError, RefusedError
from data_tools.io.progress import Progress, SilentProgress
from data_tools.readers.inputs import Reject, read_records
from data_tools.readers.jsonl import MAX_DOCUMENT_BYTES, Rejection
from data_tools.readers.record import BadRecord, ReadOptions
from data_tools.text.languages import LanguageDetector
from data_tools.text.normalization import nfc
from data_tools.tokenizer.rank_file import byte_pairs

# Text that is counted at a time, by all threads.
_BATCH_BYTES = 16 * 1024 * 1024
# Merges between two looks at Ctrl-C.
_MERGES_AT_ONCE = 256
# Weights become whole numbers: a byte of a language that has its share already counts so much.
_UNIT = 1 << 16


@dataclass(frozen=True, kw_only=True)
class TextInput:
    """Files of one language.

    Attributes:
        pattern: file, folder, pattern or URL.
        language: of all documents; None: found out for each of them.
    """

    pattern: str
    language: str | None = None


@dataclass(frozen=True, kw_only=True)
class LearningOptions:
    """What is learned.

    Attributes:
        size: tokens of the whole vocabulary, those of the base included.
        weights: language -> share of the bytes that it counts for, relative to the others; languages that are not
            named have 1. Empty: every byte of text counts once.
        min_count: a pair of tokens that occurs less often, weights aside, becomes no token.
        max_token_bytes: no new token is longer.
        threads: of the kernels.
    """

    size: int
    weights: Mapping[str, float] = field(default_factory=dict)
    min_count: int = 2
    max_token_bytes: int = 128
    threads: int = 1


@dataclass(frozen=True)
class LanguageCounts:
    """The texts of one language.

    Attributes:
        documents: how many.
        num_bytes: of their NFC in UTF-8.
        base_tokens: with the base.
        tokens: with the new vocabulary.
    """

    documents: int
    num_bytes: int
    base_tokens: int
    tokens: int


@dataclass(frozen=True)
class Augmented:
    """A vocabulary and what it does to the texts that it was learned from.

    Attributes:
        tokens: all of them by rank, those of the base first.
        counts: of each new token, how often its two parts stood beside each other, weights aside, when it was made.
        languages: most bytes first.
    """

    tokens: list[bytes]
    counts: list[int]
    languages: dict[str, LanguageCounts]


class CorpusCounts:
    """Counts the pre-tokens of texts by language.

    Attributes:
        documents: language -> texts.
        num_bytes: language -> bytes of their NFC.
    """

    def __init__(self, threads: int) -> None:
        self.pretokens = _native.PretokenCounts(threads)
        self.documents: dict[str, int] = {}
        self.num_bytes: dict[str, int] = {}
        self._texts: dict[str, list[bytes]] = {}
        self._waiting_bytes = 0

    def add(self, text: str, language: str) -> None:
        """Takes a text in any normalisation form; it may be counted later, by `flush`."""
        encoded = nfc(text).encode("utf-8")
        self.documents[language] = self.documents.get(language, 0) + 1
        self.num_bytes[language] = self.num_bytes.get(language, 0) + len(encoded)
        self._texts.setdefault(language, []).append(encoded)
        self._waiting_bytes += len(encoded)
        if self._waiting_bytes >= _BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Counts what was added."""
        groups = {language: number for number, language in enumerate(self.documents)}
        for language, texts in self._texts.items():
            self.pretokens.add(texts, groups[language])
        self._texts.clear()
        self._waiting_bytes = 0


def count_corpus(
    inputs: Sequence[TextInput],
    reject: Reject,
    *,
    text_key: str = "text",
    threads: int = 1,
    progress: Progress | None = None,
) -> CorpusCounts:
    """Counts the pre-tokens of files.

    Args:
        inputs: of any format the data engine reads.
        reject: is given every record without text.
        text_key: key of the text.
        threads: of the kernels.
        progress: is told roughly how many bytes of the files are done.
    Raises:
        DataError: a file cannot be found or opened, no record has text, or languages cannot be told.
    """
    counts = CorpusCounts(threads)
    detector = LanguageDetector() if any(one.language is None for one in inputs) else None
    options = ReadOptions(text_key=text_key, max_document_bytes=MAX_DOCUMENT_BYTES)
    for one in inputs:
        for path, record in read_records(one.pattern, options, progress):
            if isinstance(record, BadRecord):
                reject(Rejection(path, record.line, record.reason, record.detail))
                continue
            language = one.language
            if language is None:
                assert detector is not None
                language = detector.detect(record.text)[0]
            counts.add(record.text, language)
    counts.flush()
    if not counts.documents:
        names = ", ".join(one.pattern for one in inputs)
        raise DataError(f"{names}: no document has text; --text-key names its key")
    return counts


def factors(num_bytes: Mapping[str, int], weights: Mapping[str, float]) -> npt.NDArray[np.uint64]:
    """What an occurrence counts for in each language.

    With weights, bytes times factor are proportional to the languages' weights, and add up to 65536 times all bytes.

    Args:
        num_bytes: language -> bytes of its texts.
        weights: language -> weight above 0; languages that are not named have 1. Empty: all factors are 1.
    Returns:
        [languages] uint64, in the order of ``num_bytes``, each at least 1.
    Raises:
        RefusedError: a weight is of a language that no text is in.
    """
    unknown = [language for language in weights if language not in num_bytes]
    if unknown:
        raise RefusedError(
            f"--weight {unknown[0]}: no text is in this language; there are {', '.join(sorted(num_bytes))}"
        )
    if not weights:
        return np.ones(len(num_bytes), dtype=np.uint64)
    # fsum rounds once, so that the order of languages makes no difference.
    per_share = sum(num_bytes.values()) / math.fsum(weights.get(language, 1.0) for language in num_bytes)
    wanted = [weights.get(language, 1.0) * per_share / size for language, size in num_bytes.items()]
    return np.array([max(round(factor * _UNIT), 1) for factor in wanted], dtype=np.uint64)


def augment(
    base: Sequence[bytes], corpus: CorpusCounts, options: LearningOptions, progress: Progress | None = None
) -> Augmented:
    """Continues ``base`` with merges learned from ``corpus``.

    A token is made of the two neighbours that weigh most together, over and over; of equals, of those with the smaller
    ranks. So every new token is made of two before it and encodes to itself. The result depends on base, texts and
    options, not on the order of texts or the number of threads. It has fewer tokens than asked for where no pair is
    left that occurs `min_count` times.

    Args:
        base: tokens by rank.
        corpus: what `count_corpus` gave.
        options: what to learn.
        progress: is told how many merges are done.
    Raises:
        DataError: the base is no vocabulary of byte pairs, or there is more text than can be counted.
        RefusedError: there is nothing to learn, or a weight is of a language that no text is in.
    """
    if options.size <= len(base):
        raise RefusedError(f"--size {options.size} must be above the {len(base)} tokens of the base")
    progress = progress or SilentProgress()
    factors_of_groups = factors(corpus.num_bytes, options.weights)
    try:
        learner = _native.MergeLearner(
            byte_pairs(base, "the base"),
            corpus.pretokens,
            factors_of_groups,
            options.min_count,
            options.max_token_bytes,
            options.threads,
        )
    except ValueError as error:
        raise DataError(f"the corpus cannot be learned from: {error}") from error
    before = learner.num_tokens()
    left = options.size - len(base)
    while left and (learned := learner.learn(min(left, _MERGES_AT_ONCE))):
        progress.advance(learned)
        left -= learned
    tokens, merges = list(base), learner.merges()
    for first, second, _ in merges:
        tokens.append(tokens[first] + tokens[second])
    # Proves what every user of the file relies on: each token is made of two.
    byte_pairs(tokens, "the new vocabulary")
    return Augmented(tokens, [count for _, _, count in merges], _language_counts(corpus, before, learner.num_tokens()))


def _language_counts(corpus: CorpusCounts, before: list[int], after: list[int]) -> dict[str, LanguageCounts]:
    table = {
        language: LanguageCounts(corpus.documents[language], corpus.num_bytes[language], base_tokens, tokens)
        for language, base_tokens, tokens in zip(corpus.documents, before, after, strict=True)
    }
    return dict(sorted(table.items(), key=lambda item: -item[1].num_bytes))
