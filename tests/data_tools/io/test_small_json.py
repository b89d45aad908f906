"""Small JSON files of anybody: bounded, and refused with one error."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from data_tools.errors import DataError
from data_tools.io import small_json
from data_tools.io.small_json import MissingFileError, SmallFileError, build, fits, parse_json, read_object, read_rows

REFUSED = {
    "empty": b"",
    "no JSON": b"{",
    "nested 100,000 deep": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "nested 65 deep": b'{"a": ' + b"[" * 64 + b"]" * 64 + b"}",
    "not a number": b'{"a": NaN}',
    "infinite": b'{"a": Infinity}',
    "beyond a float": b'{"a": 1e400}',
    "not UTF-8": b'{"a": "\xff"}',
    "half of a pair": b'{"a": "\\ud800"}',
    "a list": b"[]",
    "null": b"null",
    "too many values": b'{"a": [' + b"0," * small_json.MOST_VALUES + b"0]}",
}


@pytest.mark.parametrize("content", REFUSED.values(), ids=REFUSED)
def test_what_is_no_small_object_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(SmallFileError) as caught:
        read_object(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert isinstance(caught.value, DataError)


def test_what_is_one_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": ' + b"[" * 63 + b"]" * 63 + b', "b": 1e308}')
    assert read_object(path)["b"] == 1e308


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    with path.open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(SmallFileError, match="1099511627776 bytes, more than the 67108864"):
        read_object(path)


def test_only_a_file_is_opened(tmp_path: Path) -> None:
    """A pipe nobody writes to must not be waited for, nor a device read to its end, which it does not have."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(SmallFileError, match="is not a file"):
            read_object(path)
    with pytest.raises(MissingFileError, match="No such file"):
        read_object(tmp_path / "none")
    with pytest.raises(SmallFileError, match="Not a directory"):
        read_object(Path("/dev/null/file"))


def test_rows_that_are_none_are_said_to_be_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_json, "LARGEST_ROW_BYTES", 16)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n\xff\n' + b'{"a": "' + b"x" * 40 + b'"}\n[1]\n{"a": 2}\n{"a"')
    assert [row for _, row in read_rows(path)] == [{"a": 1}, None, None, None, {"a": 2}, None]


@dataclass(frozen=True, kw_only=True)
class Form:
    count: int
    share: float
    name: str | None
    parts: dict[str, list[int]]
    more: tuple[int, ...] = ()


GOOD: dict[str, Any] = {"count": 1, "share": 2, "name": None, "parts": {"a": [1]}}


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"count": True}, "count=True is not a whole number"),
        ({"count": 1.0}, "count=1.0 is not a whole number"),
        ({"count": 1 << 63}, "count=9223372036854775808 is not"),
        ({"share": "2"}, "share='2' is not a number"),
        ({"name": 5}, "name=5 is not text or null"),
        ({"parts": {"a": 1}}, "parts={'a': 1} is not an object"),
        ({"more": [None]}, "more=[None] is not a list, each a whole number"),
        ({"other": 1}, "'other' is not a known key"),
    ],
)
def test_every_value_must_have_its_type(changed: dict[str, Any], named: str) -> None:
    assert build(Form, {**GOOD, "more": [1]}, "file").more == (1,)
    with pytest.raises(SmallFileError) as caught:
        build(Form, GOOD | changed, "file")
    assert named in str(caught.value)


def test_a_missing_value_is_named() -> None:
    with pytest.raises(SmallFileError, match="file: name is missing"):
        build(Form, {key: value for key, value in GOOD.items() if key != "name"}, "file")
    with pytest.raises(SmallFileError, match="must be an object, not a list"):
        build(Form, [], "file")


def test_truth_is_no_number() -> None:
    assert not fits(True, float)
    assert fits(1, float)
    assert parse_json(b"1", "x") == 1
