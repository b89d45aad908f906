"""The table of code points that the kernels work with, made from the running Python's ``unicodedata``.

It is built once a process, at first use, in about a tenth of a second.
"""

import unicodedata
from bisect import bisect_right
from collections.abc import Iterator
from functools import cache

import numpy as np

from data_tools import _native

SYMBOL, SPACE, LETTER, NUMBER, MARK, CJK = range(6)
_TERMINAL = 8
KEPT, MAPPED, LONE_MARK, CONTEXT = 0, 1 << 4, 2 << 4, 3 << 4

_NUM_CODE_POINTS = 0x110000
# Ideographs: letters that are kept as they are.
_IDEOGRAPHS = ((0x3400, 0x4DC0), (0x4E00, 0xA000), (0x20000, 0x2A6E0), (0x2A700, 0x2EBE1), (0x30000, 0x323B0))
_HANGUL_SYLLABLES = (0xAC00, 0xD7A4)
# Nothing is assigned, or only private use and surrogates.
_EMPTY = ((0xD800, 0xF900), (0x323B0, 0xE0000), (0xE0200, _NUM_CODE_POINTS))
# Kana, the iteration mark and Bopomofo: written without spaces, as ideographs are. Compatibility ideographs too.
_CJK_LETTERS = (
    (0x3005, 0x3008),
    (0x3041, 0x3100),
    (0x3105, 0x3130),
    (0x31A0, 0x31C0),
    (0x31F0, 0x3200),
    (0xF900, 0xFB00),
    (0xFF66, 0xFFA0),
    (0x1B000, 0x1B170),
    (0x2F800, 0x2FA20),
)
# Where ranges of both begin and end, in order: an odd number of them stands before what lies in one.
_CJK_BOUNDS = sorted(bound for ends in (*_IDEOGRAPHS, *_CJK_LETTERS) for bound in ends)
_KIND_OF_CATEGORY = {"L": LETTER, "N": NUMBER, "M": MARK}
# Marks that keep a word going although their general category is not Mark: underscore, zero-width (non-)joiner.
_CONNECTORS = (0x5F, 0x200C, 0x200D)
# Property Sentence_Terminal of the Unicode Character Database (PropList.txt).
_TERMINALS = (
    "!.?\u0589\u061d-\u061f\u06d4\u0700-\u0702\u07f9\u0837\u0839\u083d\u083e\u0964\u0965\u104a\u104b\u1362\u1367\u1368"
    "\u166e\u1735\u1736\u17d4\u17d5\u1803\u1809\u1944\u1945\u1aa8-\u1aab\u1b5a\u1b5b\u1b5e\u1b5f\u1b7d\u1b7e\u1c3b"
    "\u1c3c\u1c7e\u1c7f\u203c\u203d\u2047-\u2049\u2e2e\u2e3c\u2e53\u2e54\u3002\ua4ff\ua60e\ua60f\ua6f3\ua6f7\ua876"
    "\ua877\ua8ce\ua8cf\ua92f\ua9c8\ua9c9\uaa5d-\uaa5f\uaaf0\uaaf1\uabeb\ufe52\ufe56\ufe57\uff01\uff0e\uff1f\uff61"
    "\U00010a56\U00010a57\U00010f55-\U00010f59\U00010f86-\U00010f89\U00011047\U00011048\U000110be-\U000110c1"
    "\U00011141-\U00011143\U000111c5\U000111c6\U000111cd\U000111de\U000111df\U00011238\U00011239\U0001123b"
    "\U0001123c\U000112a9\U0001144b\U0001144c\U000115c2\U000115c3\U000115c9-\U000115d7\U00011641\U00011642"
    "\U0001173c-\U0001173e\U00011944\U00011946\U00011a42\U00011a43\U00011a9b\U00011a9c\U00011c41\U00011c42"
    "\U00011ef7\U00011ef8\U00016a6e\U00016a6f\U00016af5\U00016b37\U00016b38\U00016b44\U00016e98\U0001bc9f\U0001da88"
)


def terminals() -> Iterator[str]:
    """The characters that end a sentence."""
    position = 0
    while position < len(_TERMINALS):
        first = _TERMINALS[position]
        is_range = _TERMINALS[position + 1 : position + 2] == "-"
        last = _TERMINALS[position + 2] if is_range else first
        yield from map(chr, range(ord(first), ord(last) + 1))
        position += 3 if is_range else 1


def kind(character: str) -> int:
    """Kind of ``character`` in word segmentation: SYMBOL, SPACE, LETTER, NUMBER, MARK or CJK."""
    code = ord(character)
    if character.isspace():
        return SPACE
    if code in _CONNECTORS:
        return MARK
    category = unicodedata.category(character)
    if (category[0] == "L" or category == "Nl") and bisect_right(_CJK_BOUNDS, code) % 2:
        return CJK
    return _KIND_OF_CATEGORY.get(category[0], SYMBOL)


def normalized_in_python(text: str) -> str:
    """NFKC(case fold(NFKC(text))) with white space collapsed: the definition that the kernel repeats."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())


@cache
def stands_alone(character: str) -> bool:
    """Whether what stands before ``character`` and ``character`` itself are normalised each on its own."""
    return unicodedata.combining(character) == 0 and _form(character, _composing_characters()) is not None


def words(text: str) -> list[str]:
    """The words of ``text``, as every kernel sees them.

    White space separates. A Chinese character or a kana is a word. A run of letters, numbers, marks and underscores is
    a word; an apostrophe between letters and a full stop or comma between numbers do not end it. A URL is a word. A run
    of one other character is a word. Source: Unicode Standard Annex 29, simplified.
    """
    return _native.words(character_table(), text)


@cache
def character_table() -> _native.Characters:
    """The table in the kernels' form."""
    classes = np.zeros(_NUM_CODE_POINTS, dtype=np.uint8)
    for first, end in _EMPTY:
        classes[first:end] = CONTEXT  # Whatever a later Unicode puts there, unicodedata will know.
    classes[0xD800:0xF900] = KEPT
    classes[slice(*_HANGUL_SYLLABLES)] = LETTER
    forms: dict[int, bytes] = {}
    composing = _composing_characters()
    for code in _assigned(classes):
        character = chr(code)
        form = _form(character, composing)
        if form is None:
            character_form = CONTEXT
        elif form != character:
            character_form = MAPPED
            forms[code] = form.encode()
        else:
            character_form = LONE_MARK if unicodedata.combining(character) else KEPT
        classes[code] = kind(character) | character_form
    for character in terminals():
        classes[ord(character)] |= _TERMINAL
    starts = np.cumsum([0, *map(len, forms.values())], dtype=np.uint32)
    return _native.Characters(classes, np.fromiter(forms, np.uint32, len(forms)), starts, b"".join(forms.values()))


def _assigned(classes: np.ndarray) -> Iterator[int]:
    """Code points to look at one by one; enters the ideographs, which are kept as they are, and leaves out the rest.

    What is not assigned stays as the table begins: a symbol that is kept.
    """
    code = 0
    skip = dict([*_EMPTY, _HANGUL_SYLLABLES])
    ideographs = dict(_IDEOGRAPHS)
    while code < _NUM_CODE_POINTS:
        if code in skip:
            code = skip[code]
        elif code in ideographs:
            end = ideographs[code]
            letters = [unicodedata.category(chr(one))[0] == "L" for one in range(code, end)]
            classes[code:end] = np.where(letters, CJK, SYMBOL)
            code = end
        else:
            if unicodedata.category(chr(code)) != "Cn":
                yield code
            code += 1


def _form(character: str, composing: frozenset[str]) -> str | None:
    """What normalisation makes of ``character`` whatever stands around it; None if that depends on it.

    Normalisation works character by character where no character composes with the one before it or is moved: if
    every one decomposes into a sequence that begins with a starter that composes with nothing before it.
    """
    first_form = unicodedata.normalize("NFKC", character)
    folded = first_form.casefold()
    form = unicodedata.normalize("NFKC", folded)
    if form == character and unicodedata.combining(character):
        return None if character in composing else form
    for step in (character, folded):
        first = unicodedata.normalize("NFKD", step)[:1]
        if not first or unicodedata.combining(first) or first in composing:
            return None
    return form


@cache
def _composing_characters() -> frozenset[str]:
    """Characters that may compose with the one before them: second parts of canonical decompositions, and jamo."""
    seconds = {chr(code) for code in (*range(0x1161, 0x1176), *range(0x11A7, 0x11C3))}
    for code in (*range(0xC0, 0x3400), *range(0xF900, 0xFFFF), *range(0x10000, 0x20000), *range(0x2F800, 0x2FA20)):
        parts = unicodedata.decomposition(chr(code)).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            seconds.add(chr(int(parts[1], 16)))
    return frozenset(seconds)
