"""What `qwen-data tokenize` is given: JSON Lines is encoded as it is, files of other formats are read to it first."""

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from data_tools.engine.document import LONGEST_LINE_BYTES
from data_tools.engine.planning import plan_parts
from data_tools.engine.task import Manifest, Task, documents_file
from data_tools.io.file_range import FileRange
from data_tools.io.streams import BrokenStreamError, decompressed_pieces
from data_tools.readers.files import find_files, is_url, open_input
from data_tools.readers.formats import format_of
from data_tools.stages.user_files import input_file, refuse_files_named_twice

JSONL = "jsonl"
# Key of the text in what the operation `read` writes.
_TEXT_KEY = "text"


@dataclass(frozen=True)
class Segment:
    """Files that follow each other and are read in the same way.

    Attributes:
        file_format: of all of them.
        files: in order.
        is_read_first: whether tasks of the operation `read` make JSON Lines of them.
    """

    file_format: str
    files: tuple[FileRange, ...]
    is_read_first: bool


@dataclass(frozen=True)
class EncodeInput:
    """A file of JSON Lines, a user's or one that the operation `read` wrote, the key of its texts, the longest line."""

    file: FileRange
    text_key: str
    max_line_bytes: int


def find_segments(names: Sequence[str | Path], file_format: str) -> list[Segment]:
    """The files that paths, folders, patterns and URLs name, in this order, those of a folder by name.

    Args:
        names: what the user gave.
        file_format: of all files; "auto" goes by the name, and by the first character where that says nothing.
    Raises:
        DataError: one cannot be found or opened.
        RefusedError: one is named twice.
    """
    files = [file for name in names for file in _files(str(name))]
    refuse_files_named_twice([file.path for file in files])

    def way(file: FileRange) -> tuple[str, bool]:
        found = _format(file.path) if file_format == "auto" else file_format
        return found, found != JSONL or is_url(file.path)

    return [Segment(key[0], tuple(group), key[1]) for key, group in groupby(files, way)]


def _files(name: str) -> list[FileRange]:
    if is_url(name) or os.path.isdir(name) or (glob.has_magic(name) and not os.path.exists(name)):
        return find_files(name)
    found = input_file(Path(name), "name files, folders, patterns or URLs")
    return [FileRange(path=found.path, size_bytes=found.size_bytes, mtime_ns=found.mtime_ns)]


def _format(path: str) -> str:
    """By the name; a file whose name says nothing is JSON Lines if it begins with a brace."""
    found = format_of(path)
    if found != "text":
        return found
    with open_input(path) as stream:
        try:
            first = next(decompressed_pieces(stream, path), b"")
        except BrokenStreamError:
            return found
    return JSONL if first.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{") else found


def read_tasks(
    folder: Path, segments: Sequence[Segment], split_bytes: int, text_key: str, max_document_bytes: int
) -> list[list[Task]]:
    """For each segment the tasks that make JSON Lines of it; none for what is encoded as it is."""
    tasks: list[list[Task]] = []
    for segment in segments:
        parts = plan_parts(segment.files, segment.file_format, split_bytes) if segment.is_read_first else []
        number = sum(map(len, tasks))
        options = {
            "source": "data",
            "format": segment.file_format,
            "text_key": text_key,
            "keep": [],
            "extractor": "resiliparse",
            "max_document_bytes": max_document_bytes,
            "note_lines": True,
        }
        tasks.append(
            [
                Task(
                    operation="read",
                    folder=str(folder),
                    name=f"part-{number + place:06d}",
                    options=options,
                    inputs=(*part,),
                )
                for place, part in enumerate(parts)
            ]
        )
    return tasks


def encode_inputs(
    segment: Segment, read: Sequence[Manifest], text_key: str, max_document_bytes: int
) -> list[EncodeInput]:
    """What is encoded of a segment: its own files, or what the tasks of `read_tasks` left of them."""
    if segment.is_read_first:
        # What is too long has been found already, by the text and not by its line here.
        return [EncodeInput(part.output(documents_file(part.name)), _TEXT_KEY, LONGEST_LINE_BYTES) for part in read]
    return [EncodeInput(file, text_key, max_document_bytes) for file in segment.files]
