"""What every reader gives."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from data_tools.io.file_range import FileRange

# Key of a document's metadata: the `line` of its record, where it is asked for.
LINE = "line"


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


Reader = Callable[[FileRange, ReadOptions, RangeCount], Iterator[Record | BadRecord]]
