"""Questions of a benchmark: read from JSON Lines, each with the fields that its task file names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.io.streams import InputStream
from data_tools.readers.jsonl import RejectedRecordError, parse_record, read_lines
from qwen_megatron.errors import DataError
from qwen_megatron.evaluation.react import TOOL_KEYS
from qwen_megatron.evaluation.task_file import Kind, Records

LARGEST_RECORD_BYTES = 16 << 20
FIXES = {
    "text": "a text",
    "value": "a text or a number",
    "texts": "a list of texts",
    "tools": f"a list of objects with {', '.join(TOOL_KEYS)}",
}


@dataclass(frozen=True)
class Question:
    """A record of a benchmark.

    Attributes:
        place: `file:line`.
        values: By field; texts, and lists of texts.
    """

    place: str
    values: Mapping[str, Any]


def read_questions(folder: Path, chosen: Records, fields: Mapping[str, Kind]) -> list[Question]:
    """The records that a task file chooses, in the file's order.

    Args:
        folder: Of `--data`.
        chosen: File and records.
        fields: Fields that every record must have, with their kinds; others are left aside.
    Raises:
        DataError: naming file, line, rule and fix; or if the file gives no record.
    """
    path = folder / chosen.file
    if not path.is_file():
        needs = ", ".join(f"{name} ({kind})" for name, kind in fields.items())
        raise DataError(f"{path}: no such file; must hold JSON Lines with the fields {needs}")
    questions = list(_questions(path, chosen, fields))
    if not questions:
        rule = f" with {chosen.where} from {chosen.first} to {chosen.last}" if chosen.where else ""
        raise DataError(f"{path}: holds no record{rule}; give the benchmark's whole file")
    return questions


def _questions(path: Path, chosen: Records, fields: Mapping[str, Kind]) -> Iterator[Question]:
    with closing(InputStream(path)) as stream:
        for line in read_lines(stream, LARGEST_RECORD_BYTES):
            place = f"{path}:{line.number}"
            try:
                record = parse_record(line)
            except RejectedRecordError as error:
                raise DataError(f"{place}: {error}; must be a JSON object on one line, mend or remove it") from error
            values = {name: field(record, name, kind, place) for name, kind in fields.items()}
            if chosen.where is None or chosen.first <= number(values[chosen.where], chosen.where, place) <= chosen.last:
                yield Question(place, values)


def field(record: Mapping[str, Any], name: str, kind: Kind, place: str) -> Any:
    """A field of a record, checked; line ends of texts are newlines.

    Raises:
        DataError: if there is none of that name, or it is of another kind.
    """
    if name not in record:
        keys = ", ".join(map(repr, list(record)[:12]))
        raise DataError(
            f"{place}: no field {name!r}, which must be {FIXES[kind]}; the record has {keys or 'no fields'}"
        )
    value = record[name]
    if kind == "value" and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if kind in ("text", "value") and isinstance(value, str):
        return value.replace("\r\n", "\n")
    if kind == "texts" and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return [item.replace("\r\n", "\n") for item in value]
    if kind == "tools" and is_tools(value):
        return value
    raise DataError(f"{place}: field {name!r} must be {FIXES[kind]}")


def is_tools(value: object) -> bool:
    """Whether a value is a list of tools in the paper's format, at least one."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(tool, dict)
            and all(key in tool for key in TOOL_KEYS)
            and all(isinstance(tool[key], str) for key in TOOL_KEYS[:3])
            for tool in value
        )
    )


def number(value: str, name: str, place: str) -> int:
    """A field by which records are chosen.

    Raises:
        DataError: if it is no whole number.
    """
    if not value.isascii() or not value.isdigit() or len(value) > 18:
        raise DataError(
            f"{place}: field {name!r} is {value[:40]!r}; records are chosen by it, it must be a whole number"
        )
    return int(value)
