"""MinHash signatures of texts and the keys of their bands (locality-sensitive hashing)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_tools import _native
from data_tools.errors import DataError
from data_tools.text.characters import character_table
from data_tools.text.normalized import prepare

# Every value of the signature of a text without words.
NO_SHINGLE = np.uint64(2**64 - 1)


@dataclass(frozen=True, kw_only=True)
class MinHashConfig:
    """What signatures are made of. Two signatures compare only if all of it is equal."""

    bands: int = 14
    rows: int = 8
    """Values in a band; the similarity found half of the time is near (1 / bands) ** (1 / rows)."""
    num_words: int = 5
    """Words in a shingle; a CJK character is a word. A shorter text is one shingle."""
    seed: int = 1
    """Of the hash functions, below 2**64."""

    def __post_init__(self) -> None:
        for name in ("bands", "rows", "num_words"):
            if getattr(self, name) < 1:
                raise DataError(f"MinHash: {name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.seed < 2**64:
            raise DataError(f"MinHash: seed={self.seed} must be from 0 to 2**64 - 1")


DEFAULT = MinHashConfig()


def signatures(texts: Sequence[str], config: MinHashConfig = DEFAULT, threads: int = 1) -> npt.NDArray[np.uint64]:
    """MinHash signature of each text's set of shingles.

    Shingles are runs of `num_words` words of the normalised text, symbols left out, hashed to 64 bits x. Value k of a
    signature is the minimum over x of a_k x + b_k modulo 2**64. Two texts agree in a value with a probability equal
    to the Jaccard similarity of their sets.

    Returns:
        [n, bands * rows] uint64; all NO_SHINGLE for a text without words.
    Raises:
        UnicodeEncodeError: a text holds a lone surrogate.
    Source: Broder 1997, "On the resemblance and containment of documents"; multiply-add hashing after Dietzfelbinger
    1996.
    """
    prepared, flags = prepare(texts, threads)
    return _native.minhash_signatures(
        character_table(), prepared, flags, config.num_words, config.bands * config.rows, config.seed, threads
    )


def band_keys(signatures: npt.NDArray[np.uint64], bands: int = DEFAULT.bands) -> npt.NDArray[np.uint64]:
    """[n, bands] uint64: one key for the values of each band; texts with an equal key are candidates.

    Raises:
        ValueError: the width of ``signatures`` is not a multiple of ``bands``.
    Source: Indyk and Motwani 1998.
    """
    return _native.band_keys(signatures, bands)


def match_probability(similarity: float, config: MinHashConfig = DEFAULT) -> float:
    """Probability that texts of this Jaccard similarity share a band: 1 - (1 - s^rows)^bands."""
    return 1 - (1 - similarity**config.rows) ** config.bands


def jaccard(first: Sequence[str], second: Sequence[str], config: MinHashConfig = DEFAULT) -> npt.NDArray[np.float64]:
    """Exact Jaccard similarity of the shingle sets of first[i] and second[i]; 0 where neither has words.

    Returns:
        [n] float64.
    Raises:
        ValueError: ``first`` and ``second`` have different lengths.
    """
    sets = (shingle_sets(texts, config) for texts in (first, second))
    return np.array([similarity(a, b) for a, b in zip(*sets, strict=True)])


def shingle_sets(texts: Sequence[str], config: MinHashConfig = DEFAULT) -> list[npt.NDArray[np.uint64]]:
    """The hashes of each text's shingles, ascending, each once."""
    prepared, flags = prepare(texts)
    return [np.unique(one) for one in _native.shingles(character_table(), prepared, flags, config.num_words)]


def similarity(first: npt.NDArray[np.uint64], second: npt.NDArray[np.uint64]) -> float:
    """Jaccard similarity of two sets of `shingle_sets`; 0 if both are empty."""
    common = len(np.intersect1d(first, second, assume_unique=True))
    return common / max(len(first) + len(second) - common, 1)
