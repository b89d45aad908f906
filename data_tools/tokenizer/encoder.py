"""Batches of text to token ids: the fast encoder, the reference, and the rule that both agree.

An encoder takes text that is in NFC and has a UTF-8 form, and treats all of it as ordinary text: a literal
"<|endoftext|>" gives the ids of its characters. It adds no end-of-document token.
"""

import threading
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from data_tools import _native
from data_tools.errors import DataError
from data_tools.text.nfc_classes import nfc_classes
from data_tools.tokenizer.qwen import QwenTokenizer, checked_vocabulary, vocab_path
from data_tools.tokenizer.rank_file import parse_ranks

# The reference works at a tenth of the fast encoder's speed; of long texts it checks the beginning.
CHECKED_CHARACTERS = 65536


class Ragged(NamedTuple):
    """Token ids of several texts, one after the other."""

    tokens: npt.NDArray[np.int32]  # [sum of lengths]
    lengths: npt.NDArray[np.int64]  # [number of texts]


class Encoder(Protocol):
    """Turns texts into ids."""

    def encode_batch(self, texts: Sequence[str]) -> Ragged:
        """Ids of each text (NFC, no lone surrogates), in order.

        Raises:
            DataError: a text that this encoder cannot encode.
        """
        ...


class TiktokenEncoder:
    """The reference: tiktoken with Qwen's vocabulary, one text after the other."""

    def __init__(self) -> None:
        self._tokenizer = QwenTokenizer()

    def encode_batch(self, texts: Sequence[str]) -> Ragged:
        """See `Encoder.encode_batch`."""
        rows = [self._tokenizer.encode_normalized(text) for text in texts]
        tokens = np.fromiter((token for row in rows for token in row), dtype=np.int32, count=sum(map(len, rows)))
        return Ragged(tokens, np.fromiter(map(len, rows), dtype=np.int64, count=len(rows)))


class NativeEncoder:
    """The fast encoder (`csrc/text_encoder.h`): any vocabulary in tiktoken's form, with Qwen's pattern.

    Works on the thread that calls it, without the interpreter's lock; any number of threads may use it at a time.

    Attributes:
        kernel: what does the work.
    """

    def __init__(self, ranks: bytes | None = None, where: str = "the rank file") -> None:
        """Builds the tables, in a few hundredths of a second.

        Args:
            ranks: the content of a rank file, such as `qwen-data tokenizer augment` writes; None: Qwen's vocabulary.
            where: its name, for messages.
        Raises:
            DataError: a line of the rank file is wrong, or one of the 256 bytes is no token.
        """
        content = checked_vocabulary(vocab_path()) if ranks is None else ranks
        try:
            self.kernel = _native.TextEncoder(content, nfc_classes())
        except ValueError as error:
            parse_ranks(content, where)  # Says it better.
            raise DataError(f"{where}: {error}") from error

    def encode_batch(self, texts: Sequence[str]) -> Ragged:
        """See `Encoder.encode_batch`."""
        return Ragged(*self.kernel.encode_batch(texts))


_building = threading.Lock()
_built = cache(NativeEncoder)


def qwen_encoder() -> NativeEncoder:
    """The fast encoder with Qwen's vocabulary, one for all threads of a process."""
    with _building:
        return _built()


ENCODERS: dict[str, Callable[[], Encoder]] = {"native": qwen_encoder, "tiktoken": TiktokenEncoder}


def check_against_reference(encoder: Encoder, reference: Encoder, text: str, tokens: npt.NDArray[np.int32]) -> None:
    """Compares the ids of one text with the reference's; of a long text, those of its beginning.

    Args:
        encoder: the encoder that gave ``tokens``.
        reference: the encoder that is right by definition.
        text: the text in NFC.
        tokens: [n] int32, the ids of ``text``.
    Raises:
        DataError: the ids differ; nothing the encoder wrote can be trusted.
    """
    if len(text) > CHECKED_CHARACTERS:
        text = text[:CHECKED_CHARACTERS]
        tokens = encoder.encode_batch([text]).tokens
    expected = reference.encode_batch([text]).tokens
    if np.array_equal(tokens, expected):
        return
    common = min(len(tokens), len(expected))
    differing = np.flatnonzero(tokens[:common] != expected[:common])
    position = int(differing[0]) if len(differing) else common
    raise DataError(
        f"{type(encoder).__name__} and {type(reference).__name__} differ at token {position} of a text that begins "
        f"{text[:40]!r}: {tokens[position : position + 4].tolist()} instead of "
        f"{expected[position : position + 4].tolist()}; use the encoder tiktoken and report the text"
    )
