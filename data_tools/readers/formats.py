"""Formats of files, and the reader of each."""

from pathlib import PurePosixPath

from data_tools.errors import DataError
from data_tools.io.streams import name_without_compression, refuse_unread
from data_tools.readers.record import Reader

_SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet", ".warc": "warc"}
# Whole files of these are given to a library of their own, which knows no compression around them.
_UNREAD_COMPRESSED = {"parquet": (".gz", ".gzip", ".zst", ".zstd", ".bz2", ".xz")}


def format_of(path: str) -> str:
    """The format of a file by its name: jsonl, parquet, warc, or text for any other.

    Raises:
        DataError: the format is read, but not compressed in this way.
    """
    name = PurePosixPath(path)
    inner = name_without_compression(name)
    file_format = _SUFFIXES.get(inner.suffix, "text")
    if file_format != "text":
        refuse_unread(name)
    if inner != name and name.suffix in _UNREAD_COMPRESSED.get(file_format, ()):
        raise DataError(f"{path}: {file_format} files are not read from {name.suffix}; unpack it")
    return file_format


def reader_of(file_format: str) -> Reader:
    """The reader of a format; its libraries are imported when it is used."""
    from data_tools.readers.jsonl_records import read_jsonl
    from data_tools.readers.parquet_records import read_parquet
    from data_tools.readers.text_files import read_text
    from data_tools.readers.warc_records import read_warc

    readers: dict[str, Reader] = {"jsonl": read_jsonl, "parquet": read_parquet, "text": read_text, "warc": read_warc}
    return readers[file_format]
