"""The table of code points by which the kernels find Qwen's pre-tokens (`csrc/pretokens.h`)."""

import unicodedata
from functools import cache

import numpy as np
import numpy.typing as npt

OTHER, SPACE, LETTER, NUMBER = range(4)
_NUM_CODE_POINTS = 0x110000
# Property White_Space of the Unicode Character Database, which `\s` means to tiktoken; `str.isspace` has others too.
_SPACES = (*range(0x09, 0x0E), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000)


@cache
def pattern_kinds() -> npt.NDArray[np.uint8]:
    """[0x110000] uint8, for each code point OTHER, SPACE, LETTER or NUMBER, by the running Python's ``unicodedata``.

    Characters newer than it are OTHER, where an encoder may know them for letters. Built once a process, at first use.
    """
    letter, number = ord("L"), ord("N")
    categories = "".join(unicodedata.category(chr(code))[0] for code in range(_NUM_CODE_POINTS))
    first = np.frombuffer(categories.encode("ascii"), dtype=np.uint8)
    kinds = np.where(first == letter, LETTER, np.where(first == number, NUMBER, OTHER)).astype(np.uint8)
    kinds[list(_SPACES)] = SPACE
    kinds.setflags(write=False)
    return kinds
