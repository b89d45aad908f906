"""What every reader gives, and how readers are chosen."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from data_tools.pipeline.task import TaskInput


class Record(NamedTuple):
    """A record with text.

    Attributes:
        place: where it begins in the file: byte offset of the decompressed file, or row number.
        line: line (from 1, counted from the beginning of the range) or row (from 0).
        text: as it is in the file, or as it was extracted.
        fields: the other keys.
    """

    place: int
    line: int
    text: str
    fields: Mapping[str, Any]


class BadRecord(NamedTuple):
    """A record that gives no document."""

    line: int
    reason: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How to read one data set.

    Attributes:
        text_key: key (JSON Lines) or column (Parquet) of the text.
        keep: other keys to carry along; None for all that there are.
        max_document_bytes: a longer record is rejected.
        extractor: what takes the text out of HTML (WARC).
    """

    text_key: str
    keep: tuple[str, ...] | None = ()
    max_document_bytes: int
    extractor: str = "resiliparse"

    def kept(self, keys: Iterable[str]) -> list[str]:
        """Those of a record's ``keys`` to carry along."""
        present = list(keys)
        wanted = present if self.keep is None else self.keep
        return [key for key in wanted if key != self.text_key and key in present]


@dataclass
class RangeCount:
    """Filled in by a reader: how many lines the range has, so that lines of later ranges can be numbered."""

    lines: int = 0


Reader = Callable[[TaskInput, ReadOptions, RangeCount], Iterator[Record | BadRecord]]

_SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet", ".warc": "warc"}
_COMPRESSED = (".gz", ".gzip", ".zst", ".zstd")


def format_of(path: str) -> str:
    """The format of a file by its name: jsonl, parquet, warc, or text for any other."""
    name = PurePosixPath(path)
    if name.suffix in _COMPRESSED:
        name = name.with_suffix("")
    return _SUFFIXES.get(name.suffix, "text")


def reader_of(file_format: str) -> Reader:
    """The reader of a format; its libraries are imported when it is used."""
    from data_tools.readers.jsonl_records import read_jsonl
    from data_tools.readers.parquet_records import read_parquet
    from data_tools.readers.text_files import read_text
    from data_tools.readers.warc_records import read_warc

    readers: dict[str, Reader] = {"jsonl": read_jsonl, "parquet": read_parquet, "text": read_text, "warc": read_warc}
    return readers[file_format]
