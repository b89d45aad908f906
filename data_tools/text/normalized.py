"""The normalised form of texts, by which duplicates are recognised, and its 128-bit hash."""

import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from data_tools import _native
from data_tools.text.characters import character_table, normalized_in_python, stands_alone
from data_tools.text.normalization import nfc

# Belongs into the record of any run whose results rest on normalised text.
NORMALIZATION = f"nfkc-casefold-unicode-{unicodedata.unidata_version}"


def normalize(text: str) -> str:
    """NFKC(case fold(NFKC(text))), white space collapsed to single spaces, none at the ends.

    Source: Unicode Standard Annex 15 and section 3.13 of the Unicode Standard (without removal of default-ignorable
    characters).
    """
    (prepared,), (is_normalized,) = prepare([text])
    return prepared if is_normalized else _native.normalize(character_table(), prepared)


def prepare(texts: Sequence[str], threads: int = 1) -> tuple[list[str], npt.NDArray[np.bool_]]:
    """Texts the kernels can take: as they are, or normalised by ``unicodedata`` where characters depend on each other.

    Returns:
        The texts, and for each whether it is in normalised form now; the kernels normalise the others.
    Raises:
        UnicodeEncodeError: a text holds a lone surrogate.
    """
    flags = _native.needs_context(character_table(), texts, threads)
    prepared = list(texts)
    for index in np.flatnonzero(flags):
        # Through NFC first, which is linear for any text.
        prepared[index] = normalized_in_python(nfc(prepared[index]))
    return prepared, flags


def sources_of_normalized(text: str) -> tuple[list[int], list[int]]:
    """For each character of `normalize` of ``text``, where in ``text`` that begins and ends of which it was made.

    Returns:
        Two lists as long as the normalised text. Characters that are normalised together, as a letter and its accents,
        have the same source; a space stands for all white space that it was collapsed from.
    """
    starts: list[int] = []
    ends: list[int] = []
    space: tuple[int, int] | None = None  # White space that is waiting for a character behind it.
    first = 0
    for end in range(1, len(text) + 1):
        if end < len(text) and not stands_alone(text[end]):
            continue
        for character in _normalized_alone(text[first:end]):
            if character.isspace():
                space = (space[0] if space else first, end)
                continue
            if space and starts:
                starts.append(space[0])
                ends.append(space[1])
            space = None
            starts.append(first)
            ends.append(end)
        first = end
    return starts, ends


@lru_cache(maxsize=4096)
def _normalized_alone(part: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", nfc(part)).casefold())


def normalized_hashes(texts: Sequence[str], threads: int = 1) -> npt.NDArray[np.uint64]:
    """128-bit hash of the normalised form of each text: equal for texts that differ in case, form or white space only.

    Returns:
        [n, 2] uint64, the two halves of MurmurHash3 x64 128 with seed 0 of the UTF-8 of `normalize`.
    Source: MurmurHash3, Austin Appleby.
    """
    prepared, flags = prepare(texts, threads)
    return _native.normalized_hashes(character_table(), prepared, flags, threads)
