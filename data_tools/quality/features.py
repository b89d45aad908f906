"""Texts as rows of hashed n-grams."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_tools import _native
from data_tools.errors import DataError
from data_tools.text.characters import character_table
from data_tools.text.normalization import nfc

LONGEST_NGRAM = 8
FEWEST_BITS, MOST_BITS = 8, 24


@dataclass(frozen=True, kw_only=True)
class FeatureConfig:
    """What a text is to the model."""

    max_ngram: int = 2
    """Words in the longest n-gram; a CJK character is a word, and so is a run of one punctuation mark."""
    bits: int = 20
    """2**bits buckets, 4 bytes each in the model and 4 a thread while scoring."""

    def __post_init__(self) -> None:
        for name, low, high in (("max_ngram", 1, LONGEST_NGRAM), ("bits", FEWEST_BITS, MOST_BITS)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise DataError(f"quality features: {name}={value} must be {low} to {high}")


@dataclass(frozen=True)
class FeatureRows:
    """Features of n texts, one row each, without the zeros."""

    offsets: npt.NDArray[np.int64]
    """[n + 1] where each row begins in the other two."""
    columns: npt.NDArray[np.uint32]
    values: npt.NDArray[np.float32]

    def without_empty_columns(self) -> tuple["FeatureRows", npt.NDArray[np.int64]]:
        """The same rows with the columns that occur numbered from 0, and the old numbers of these, ascending."""
        used = np.zeros(int(self.columns.max(initial=0)) + 1, dtype=bool)
        used[self.columns] = True
        new_number = (np.cumsum(used) - 1).astype(np.uint32)
        return FeatureRows(self.offsets, new_number[self.columns], self.values), np.flatnonzero(used)


def feature_rows(texts: Sequence[str], config: FeatureConfig, threads: int = 1) -> FeatureRows:
    """Hashed n-grams of each text: the value of bucket b is sqrt(c_b / c), c_b n-grams of all c in it.

    An n-gram, n = 1 .. max_ngram, of the words with hashes h_1 .. h_n goes to the bucket of the top ``bits`` bits of
    mix64(sum of h_i B^(n - i)) (csrc/shingles.h). A row has length 1, so a text written twice is the same row but for
    the n-grams across the seam; the root keeps frequent words from deciding alone. Texts are brought to NFC first.

    Raises:
        UnicodeEncodeError: a text holds a lone surrogate.
    Source: hashing after Weinberger et al. 2009 (arXiv 0902.2206); n-grams of words for a linear classifier after
    Joulin et al. 2016 (arXiv 1607.01759); the root of a distribution, whose inner product is Bhattacharyya's
    coefficient, after Jebara, Kondor and Howard 2004.
    """
    normal = [nfc(text) for text in texts]
    return FeatureRows(*_native.ngram_features(character_table(), normal, config.max_ngram, config.bits, threads))


def feature_scores(
    texts: Sequence[str], weights: npt.NDArray[np.float32], config: FeatureConfig, threads: int = 1
) -> npt.NDArray[np.float64]:
    """[n] weights [2**bits] times the row of each text, in one pass over the text.

    Raises:
        UnicodeEncodeError: a text holds a lone surrogate.
    """
    normal = [nfc(text) for text in texts]
    return _native.ngram_scores(character_table(), normal, weights, config.max_ngram, config.bits, threads)
