"""Batches of text to token ids: the fast encoder, the reference, and the rule that both agree.

An encoder takes text that is in NFC and has a UTF-8 form, and treats all of it as ordinary text: a literal
"<|endoftext|>" gives the ids of its characters. It adds no end-of-document token.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from data_tools.errors import DataError
from data_tools.tokenizer.qwen import FINGERPRINT, QwenTokenizer, checked_vocabulary, vocab_path

# Resident memory that gigatoken's caches may take before they are thrown away.
CACHE_LIMIT_BYTES = 256 * 1024 * 1024
# The reference works at a tenth of the fast encoder's speed; of long texts it checks the beginning.
CHECKED_CHARACTERS = 65536


class Ragged(NamedTuple):
    """Token ids of several texts, one after the other."""

    tokens: npt.NDArray[np.int32]  # [sum of lengths]
    lengths: npt.NDArray[np.int64]  # [number of texts]


class Encoder(Protocol):
    """Turns texts into ids."""

    fingerprint: str

    def encode_batch(self, texts: Sequence[str]) -> Ragged:
        """Ids of each text (NFC, no lone surrogates), in order.

        Raises:
            DataError: a text that this encoder cannot encode.
        """
        ...


class TiktokenEncoder:
    """The reference: tiktoken, one text after the other."""

    fingerprint = FINGERPRINT

    def __init__(self) -> None:
        self._tokenizer = QwenTokenizer()

    def encode_batch(self, texts: Sequence[str]) -> Ragged:
        """See `Encoder.encode_batch`."""
        rows = [self._tokenizer.encode_normalized(text) for text in texts]
        tokens = np.fromiter((token for row in rows for token in row), dtype=np.int32, count=sum(map(len, rows)))
        return Ragged(tokens, np.fromiter(map(len, rows), dtype=np.int64, count=len(rows)))


class GigatokenEncoder:
    """The fast encoder: gigatoken (Rust), on the thread that calls it.

    Text by text, because its batches come as awkward arrays, whose import and copies cost more than the calls do. Its
    caches grow with the number of different words seen and cannot be limited, so it is created anew when the process
    has grown by ``cache_limit_bytes``.
    """

    fingerprint = FINGERPRINT

    def __init__(self, cache_limit_bytes: int = CACHE_LIMIT_BYTES) -> None:
        self._cache_limit_bytes = cache_limit_bytes
        checked_vocabulary(vocab_path())  # Refuses a wrong file: gigatoken itself would take any.
        self._start()

    def _start(self) -> None:
        import gigatoken

        # Special tokens are never passed: gigatoken would find them in the text and make control ids of them.
        self._tokenizer: Any = gigatoken.Tokenizer.from_tiktoken(
            str(vocab_path()), pretokenizer="qwen2", special_tokens={}
        )
        self._start_bytes = _resident_bytes()

    def encode_batch(self, texts: Sequence[str]) -> Ragged:
        """See `Encoder.encode_batch`."""
        if not texts:
            return Ragged(np.empty(0, dtype=np.int32), np.empty(0, dtype=np.int64))
        if _resident_bytes() - self._start_bytes > self._cache_limit_bytes:
            self._tokenizer = None  # Freed before the new one is built.
            self._start()
        encode = self._tokenizer.encode
        rows = [encode(text) for text in texts]
        lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        return Ragged(np.concatenate(rows).view(np.int32), lengths)


ENCODERS = {"gigatoken": GigatokenEncoder, "tiktoken": TiktokenEncoder}


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
        f"{expected[position : position + 4].tolist()}; use --encoder tiktoken and report the text"
    )


def _resident_bytes() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)
