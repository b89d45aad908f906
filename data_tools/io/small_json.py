"""Reads small JSON files that anybody may have written: bounded in bytes, values and depth, numbers finite.

Manifests, states, records, sidecars and indexes are all read here, so that none of them can take the memory of the
machine, wait for a pipe, or bring an error of the parser to a user.
"""

import dataclasses
import os
import stat
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import orjson

from data_tools.errors import DataError

LARGEST_BYTES = 64 << 20
LARGEST_ROW_BYTES = 4 << 20
# Objects, lists and commas: each may take 240 bytes of memory for as few as 3 in the file.
MOST_VALUES = 2 << 20
DEEPEST = 64
LARGEST_INTEGER = (1 << 63) - 1
_BOM = b"\xef\xbb\xbf"

Kind = TypeVar("Kind")


class SmallFileError(DataError):
    """A small file cannot be read, or does not hold what it must; the message names file and rule."""


class MissingFileError(SmallFileError):
    """There is no such file."""


def read_bytes(path: Path, max_bytes: int = LARGEST_BYTES) -> bytes:
    """The content of a regular file.

    Args:
        path: the file.
        max_bytes: a larger file is not read.
    Raises:
        MissingFileError: there is none.
        SmallFileError: it is no file, too large, or cannot be read.
    """
    with _opened(path) as stream:
        content = stream.read(max_bytes + 1)
        size = os.fstat(stream.fileno()).st_size
    if len(content) > max_bytes:
        raise SmallFileError(f"{path}: {size} bytes, more than the {max_bytes} such a file can have; it is not read")
    return content


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """A regular file; a pipe or a device is not waited for."""
    try:
        with open(path, "rb", opener=_open_file) as stream:
            yield stream
    except FileNotFoundError as error:
        raise MissingFileError(f"{path}: cannot be read: {error.strerror}") from error
    except OSError as error:
        raise SmallFileError(f"{path}: cannot be read: {error.strerror or error}") from error


def _open_file(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SmallFileError(f"{path}: is not a file")
    return descriptor


def read_json(path: Path, *, max_bytes: int = LARGEST_BYTES) -> Any:
    """What a JSON file holds.

    Raises:
        MissingFileError, SmallFileError: as `read_bytes` and `parse_json`.
    """
    return parse_json(read_bytes(path, max_bytes), str(path))


def read_object(path: Path, *, max_bytes: int = LARGEST_BYTES) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        MissingFileError, SmallFileError: as `read_json`, or it holds something else.
    """
    content = read_json(path, max_bytes=max_bytes)
    if not isinstance(content, dict):
        raise SmallFileError(f"{path}: must hold a JSON object, not {kind_of(content)}")
    return content


def parse_json(content: bytes, where: str) -> Any:
    """What JSON text says.

    Args:
        content: UTF-8, with or without a byte-order mark.
        where: what it is part of, for messages.
    Raises:
        SmallFileError: it is not JSON (NaN and Infinity are not), a number is beyond a float, there are too many
            values, or they lie too deep in each other.
    """
    if sum(map(content.count, (b",", b"{", b"["))) > MOST_VALUES:
        raise SmallFileError(f"{where}: holds more than {MOST_VALUES} values; it is not read")
    try:
        value = orjson.loads(content.removeprefix(_BOM))
    except orjson.JSONDecodeError as error:
        raise SmallFileError(f"{where}: not valid JSON ({error})") from error
    if is_deeper(value, DEEPEST):
        raise SmallFileError(f"{where}: nested more than {DEEPEST} deep; no such file is")
    return value


def is_deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects of parsed JSON lie more than ``levels`` deep in each other."""
    inside = [value]
    for _ in range(levels):
        inside = [
            child
            for one in inside
            if isinstance(one, dict | list)
            for child in (one.values() if isinstance(one, dict) else one)
            if isinstance(child, dict | list)
        ]
        if not inside:
            return False
    return True


def read_rows(path: Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """The lines of a JSON Lines file with their ends, and the object on each; None for anything else.

    Of a line longer than LARGEST_ROW_BYTES only the beginning is given, with None.

    Raises:
        MissingFileError, SmallFileError: as `read_bytes`, but for the size.
    """
    with _opened(path) as stream:
        while line := stream.readline(LARGEST_ROW_BYTES):
            is_whole = line.endswith(b"\n") or len(line) < LARGEST_ROW_BYTES
            rest = b"" if is_whole else b" "
            while rest and not rest.endswith(b"\n"):
                rest = stream.readline(LARGEST_ROW_BYTES)
            yield line, row_of(line) if is_whole else None


def row_of(line: bytes) -> dict[str, Any] | None:
    """The object on a line; None for anything else."""
    try:
        row = parse_json(line, "a line")
    except SmallFileError:
        return None
    return row if isinstance(row, dict) else None


def build(kind: type[Kind], content: object, where: str) -> Kind:
    """A dataclass from parsed JSON.

    Args:
        kind: its fields have types that `fits` knows.
        content: an object whose keys are the fields, those with defaults may be missing.
        where: the file and what of it, for messages.
    Raises:
        SmallFileError: naming the key that is unknown, missing or of another type.
    """
    if not isinstance(content, Mapping):
        raise SmallFileError(f"{where}: must be an object, not {kind_of(content)}")
    hints = typing.get_type_hints(kind)
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    unknown = [str(key) for key in content if key not in hints]
    if unknown:
        raise SmallFileError(f"{where}: {shown(unknown[0])} is not a known key")
    for field in fields:
        has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if field.name not in content and not has_default:
            raise SmallFileError(f"{where}: {field.name} is missing")
        if field.name in content and not fits(content[field.name], hints[field.name]):
            raise SmallFileError(
                f"{where}: {field.name}={shown(content[field.name])} is not {type_words(hints[field.name])}"
            )
    return kind(
        **{key: tuple(value) if typing.get_origin(hints[key]) is tuple else value for key, value in content.items()}
    )


def fits(value: object, hint: Any) -> bool:
    """Whether a value of parsed JSON has a type; an integer is also a float, a list also a tuple.

    Args:
        value: the value.
        hint: str, int, float, bool, None, Any, unions, and lists, tuples, dicts and mappings of these.
    """
    if hint is Any:
        return True
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(fits(value, argument) for argument in arguments)
    if origin in (list, tuple):
        return isinstance(value, list | tuple) and all(fits(item, arguments[0]) for item in value)
    if origin is not None:
        return isinstance(value, Mapping) and all(
            fits(key, arguments[0]) and fits(item, arguments[1]) for key, item in value.items()
        )
    if isinstance(value, bool):
        return hint is bool
    if isinstance(value, int):
        return hint in (int, float) and abs(value) <= LARGEST_INTEGER
    return isinstance(value, hint)


def is_count(value: object) -> bool:
    """Whether a value is a whole number from 0 to LARGEST_INTEGER."""
    return fits(value, int) and typing.cast(int, value) >= 0


def type_words(hint: Any) -> str:
    """A type as people call it."""
    words = {str: "text", int: "a whole number", float: "a number", bool: "true or false", types.NoneType: "null"}
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return " or ".join(type_words(argument) for argument in typing.get_args(hint))
    if typing.get_origin(hint) in (list, tuple):
        return f"a list, each {type_words(typing.get_args(hint)[0])}"
    return words.get(hint, "an object")


def kind_of(value: object) -> str:
    """What a value of parsed JSON is."""
    if value is None:
        return "null"
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)


def shown(value: object) -> str:
    """A value for messages, cut short if it is long."""
    try:
        text = repr(value)
    except ValueError:
        # YAML's 0xfff... has no limit, printing it in decimal digits has.
        text = f"{kind_of(value)} of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."
