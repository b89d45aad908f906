"""The text of a very long line, a piece at a time: neither the text nor its ids are ever whole in memory.

A `str` takes four bytes for each character as soon as one of them lies beyond U+FFFF, so the text of a line of 256 MiB
could take 1 GiB. Instead the long strings of the record are found, the record is parsed without them, and the text is
decoded, normalised and encoded in pieces of about a megabyte, cut where neither normalisation nor the tokenizer's
pattern can tell the difference.
"""

import re
import secrets
from collections.abc import Iterable, Iterator

import orjson

from data_tools import _native
from data_tools.readers.jsonl import LONG_LINE_BYTES, Line, RejectedRecordError, not_json, text_of_record
from data_tools.text.normalization import nfc

_LONG_STRING_BYTES = 1024
_PIECE_BYTES = 1024 * 1024
_PIECE_CHARACTERS = 512 * 1024
# A stretch without a place to cut is one word to the encoder, which takes some 15 bytes of memory a character for it.
LONGEST_WORD = 8 * 1024 * 1024

# Where a text may be cut. After a letter or number, before an ASCII character or mark of Chinese punctuation that is no
# letter: a word (`\p{L}+`) and a contraction end there, a number (`\p{N}`) is always alone, and no other alternative of
# the pattern holds either. After an ASCII digit, before any ASCII character, for the same reason. After a line end,
# before visible ASCII: `\s*[\r\n]+` and `[\r\n]*` take line ends to the last one and nothing beyond. The character
# before the cut is not white space, or a line end: so `\s+(?!\S)` never looks across it. And no character that may
# stand after a cut ever combines with one before it (Unicode Standard Annex 15: all are starters that no composition
# has in second place).
_CUT = re.compile(
    "[^\\W_](?=[\\x00-\\x40\\x5b-\\x60\\x7b-\\x7f\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f])"
    "|[0-9](?=[\\x00-\\x7f])|[\\r\\n](?=[\\x21-\\x7e])"
)
_HIGH_SURROGATE = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}")


class UncuttableTextError(Exception):
    """The text has a stretch longer than LONGEST_WORD without a place to cut."""


class LongText:
    """The text of one long line.

    Attributes:
        start, stop: where in the line it stands, as JSON writes it.
    """

    def __init__(self, line: Line, text_key: str) -> None:
        """Parses the record.

        Raises:
            RejectedRecordError: as `jsonl.parse_text` does; too_long also if more than 8 MiB of the line are not in
                strings of a kilobyte or more, since those would have to be parsed in memory.
        """
        self._content = line.content
        places = _native.json_strings(self._content, _LONG_STRING_BYTES)
        record, names = _skeleton(self._content, places)
        if not isinstance(record, dict):
            raise RejectedRecordError("not_an_object", "the record is an array or a string, not an object")
        text = text_of_record(record, text_key)
        self.start, self.stop = names.get(text, (0, 0))
        self._short = "" if text in names else text

    def pieces(self) -> Iterator[str]:
        """The text in NFC, in pieces that normalise and encode alone to what they give in the whole.

        Raises:
            UncuttableTextError: a stretch of LONGEST_WORD characters has no place to cut.
        """
        return cut_pieces(_decoded(self._content, self.start, self.stop) if self.stop else [self._short])


def _skeleton(content: bytes | bytearray, places: list[tuple[int, int]]) -> tuple[object, dict[str, tuple[int, int]]]:
    """The record with a name in the place of each long string, and where the named strings are."""
    stem = secrets.token_hex(16)  # No string of the record is equal to one of the names.
    names = {f"{stem}{number}": place for number, place in enumerate(places)}
    outside = len(content) - sum(stop - start for start, stop in places)
    if outside > LONG_LINE_BYTES:
        detail = f"{len(content)} bytes, {outside} of them outside of long strings, more than {LONG_LINE_BYTES}"
        raise RejectedRecordError("too_long", detail)
    parts: list[bytes | bytearray] = []
    position = 0
    for name, (start, stop) in names.items():
        parts += (content[position:start], name.encode())
        position = stop
    parts.append(content[position:])
    try:
        record = orjson.loads(b"".join(parts))
        for start, stop in places:
            for _ in _decoded(content, start, stop):
                pass
    except orjson.JSONDecodeError as error:
        raise not_json(content, error) from error
    return record, names


def _decoded(content: bytes | bytearray, start: int, stop: int) -> Iterator[str]:
    """The string that JSON writes as content[start:stop], in pieces."""
    while start < stop:
        cut = stop if stop - start <= _PIECE_BYTES else _end_of_character(content, start, start + _PIECE_BYTES)
        yield orjson.loads(b"".join((b'"', content[start:cut], b'"')))
        start = cut


def _end_of_character(content: bytes | bytearray, start: int, near: int) -> int:
    """The last place up to ``near`` that cuts no UTF-8 sequence, escape or pair of surrogates; start < near."""
    for _ in range(3):
        near -= content[near] & 0xC0 == 0x80
    for place in range(near - 1, near - 6, -1):
        if _is_escape(content, start, place) and place + (6 if content[place + 1] == ord("u") else 2) > near:
            near = place
            break
    before = near - 6
    if _is_escape(content, start, before) and _HIGH_SURROGATE.match(content, before):
        return before
    return near


def _is_escape(content: bytes | bytearray, start: int, place: int) -> bool:
    """Whether an escape begins at ``place``: a backslash with an even number of them right before it."""
    if content[place] != ord("\\"):
        return False
    before = bytes(content[start:place])
    return (len(before) - len(before.rstrip(b"\\"))) % 2 == 0


def cut_pieces(strings: Iterable[str]) -> Iterator[str]:
    """The text that ``strings`` give together, in NFC, cut only where `_CUT` allows it."""
    rest = ""
    for string in strings:
        searched = max(len(rest) - 1, 0)
        rest += string
        if len(rest) < _PIECE_CHARACTERS:
            continue
        cut = _last_cut(rest, searched)
        if cut:
            yield nfc(rest[:cut])
            rest = rest[cut:]
        elif len(rest) > LONGEST_WORD:
            raise UncuttableTextError(
                f"{len(rest)} characters without white space after a word, number or line end; at most {LONGEST_WORD} "
                "can be encoded in bounded memory"
            )
    if rest:
        yield nfc(rest)


def _last_cut(text: str, searched: int) -> int:
    """The last place to cut after ``searched``, up to which there is none; 0 if there is none after it either."""
    width = 4096  # Most texts have one this near to their end.
    while True:
        begin = max(len(text) - width, searched)
        for cut in reversed([match.end() for match in _CUT.finditer(text, begin)]):
            # Some letters have a mark in form C (U+0958); the pattern must see a letter there.
            if nfc(text[cut - 1]) == text[cut - 1]:
                return cut
        if begin == searched:
            return 0
        width *= 8
