"""The table by which the kernels see that a text is in form C (`csrc/nfc_check.h`)."""

import unicodedata
from functools import cache

import numpy as np
import numpy.typing as npt

# Not to be told without looking at what stands around: it decomposes, or composes with a character before it.
OPEN = 255
# Nothing that normalisation could change, and no mark, stands anywhere else: not before À, not among ideographs, not
# beyond the second plane. Hangul syllables are what their parts compose to.
_SEARCHED = ((0xC0, 0x3400), (0xA000, 0xAC00), (0xF900, 0x20000), (0x2F800, 0x2FA20))
# Vowels and final consonants of Hangul compose by rule, not by table.
_JAMO = (*range(0x1161, 0x1176), *range(0x11A8, 0x11C3))


@cache
def nfc_classes() -> npt.NDArray[np.uint8]:
    """[0x110000] uint8, for each code point its combining class, or OPEN; by the running Python's ``unicodedata``.

    Source: Unicode Standard Annex 15, section 9 (quick check).
    """
    classes = np.zeros(0x110000, dtype=np.uint8)
    combining, decomposition = unicodedata.combining, unicodedata.decomposition
    seconds = list(_JAMO)
    for first, end in _SEARCHED:
        for code, character in enumerate(map(chr, range(first, end)), first):
            if combining_class := combining(character):
                classes[code] = combining_class
            if (parts := decomposition(character)) and parts[0] != "<":
                if not unicodedata.is_normalized("NFC", character):
                    classes[code] = OPEN
                seconds += [int(part, 16) for part in parts.split()[1:]]
    classes[seconds] = OPEN
    classes.setflags(write=False)
    return classes
