"""Formats of files, and the reader of each."""

from pathlib import PurePosixPath

from data_tools.readers.record import Reader

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
