"""Parquet: rows of a text column; a part is a range of row groups."""

import base64
import datetime
import decimal
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from data_tools.errors import DataError
from data_tools.io.file_range import FileRange
from data_tools.io.streams import CORRUPT
from data_tools.io.work_done import count_input
from data_tools.readers.files import open_uncounted
from data_tools.readers.record import BadRecord, RangeCount, ReadOptions, Record

_BATCH_ROWS = 1024
_BATCH_BYTES = 16 * 1024 * 1024
_BUFFER_BYTES = 1024 * 1024
# A column of a row group that is larger than this is not taken with its dictionary of texts.
_DICTIONARY_BYTES = 64 * 1024 * 1024


def read_parquet(part: FileRange, options: ReadOptions, count: RangeCount) -> Iterator[Record | BadRecord]:
    """The rows of a file; see `record.Reader`. A damaged file or row group is one bad record."""
    pyarrow, parquet = _pyarrow()
    with open_uncounted(part.path) as stream:
        row = 0
        try:
            file = _opened(parquet, stream, options.text_key)
            names = file.schema_arrow.names
            if options.text_key not in names:
                yield BadRecord(0, "missing_text", f"no column {options.text_key!r}; columns: {', '.join(names[:8])}")
                return
            columns = [options.text_key, *options.kept(names)]
            for group in range(file.num_row_groups):
                rows = _rows_at_once(file.metadata.row_group(group))
                for batch in file.iter_batches(batch_size=rows, row_groups=[group], columns=columns):
                    for values in _rows(batch):
                        yield _record(row, values, options)
                        row += 1
                    # By rows: of the bytes only those of some columns are read.
                    count_input(part.num_bytes * batch.num_rows // file.metadata.num_rows)
        except (pyarrow.ArrowException, OSError) as error:
            yield BadRecord(row, CORRUPT, f"{error}; every row after it is lost")
        count.lines = row


def _opened(parquet: Any, stream: BinaryIO, text_key: str) -> Any:
    """The file, its pages read as they are needed.

    Few distinct texts stay a dictionary: a long one that a million rows share would not fit into memory as often.
    """
    metadata = parquet.read_metadata(stream)
    stream.seek(0)
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    columns = [group.column(number) for group in groups for number in range(group.num_columns)]
    texts = [column for column in columns if column.path_in_schema == text_key and column.physical_type == "BYTE_ARRAY"]
    is_small = max((column.total_uncompressed_size for column in texts), default=0) <= _DICTIONARY_BYTES
    dictionary = [text_key] if texts and is_small else None
    return parquet.ParquetFile(stream, metadata=metadata, read_dictionary=dictionary, buffer_size=_BUFFER_BYTES)


def _rows_at_once(group: Any) -> int:
    """Rows of about `_BATCH_BYTES`: a batch of a thousand long documents would not fit into memory."""
    row_bytes = group.total_byte_size / max(1, group.num_rows)
    return int(min(_BATCH_ROWS, max(1, _BATCH_BYTES / max(1, row_bytes))))


def _rows(batch: Any) -> Iterator[dict[str, Any]]:
    """Rows one by one; a text that is not UTF-8 stays bytes, for Arrow checks none when it reads."""
    names = batch.schema.names
    for row in range(batch.num_rows):
        yield {name: _value(batch.column(name)[row]) for name in names}


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        text = getattr(scalar, "value", scalar)  # Of a dictionary's scalar the value it stands for.
        if isinstance(text, Mapping):
            return {name: _value(text[name]) for name in text}
        return bytes(text.as_buffer()) if hasattr(text, "as_buffer") else [_value(one) for one in text.values]
    except ValueError:  # A time in nanoseconds, which Python's have none of.
        return str(scalar)


def _record(row: int, values: dict[str, Any], options: ReadOptions) -> Record | BadRecord:
    text = values.pop(options.text_key)
    if isinstance(text, bytes):  # A column of bytes, or text that Arrow could not decode.
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as error:
            return BadRecord(row, "invalid_utf8", f"the text is not UTF-8: {error.reason} at byte {error.start}")
    if not isinstance(text, str):
        return BadRecord(row, "text_not_string", f"{options.text_key!r} is {type(text).__name__}, not a string")
    if not text:
        return BadRecord(row, "empty", f"{options.text_key!r} is the empty string")
    if len(text) > options.max_document_bytes or len(text.encode("utf-8")) > options.max_document_bytes:
        return BadRecord(row, "too_long", f"more than max_document_bytes={options.max_document_bytes} bytes")
    return Record(row, row, text, {name: _json_value(value) for name, value in values.items()})


def _json_value(value: Any) -> Any:
    """A value that is carried along as JSON has it: decimals exact, as text; bytes as text, or else in base64."""
    if isinstance(value, dict):
        return {str(key): _json_value(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(one) for one in value]
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return base64.b64encode(value).decode("ascii")
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, datetime.date | datetime.time):  # Points in time are dates.
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return format(value, "f")
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError("Parquet needs pyarrow; in the checkout run: pip install -e '.[data]'") from error
    return pyarrow, pyarrow.parquet
