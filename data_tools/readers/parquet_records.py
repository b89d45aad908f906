"""Parquet: rows of a text column; a part is a range of row groups."""

from collections.abc import Iterator
from typing import Any

from data_tools.errors import DataError
from data_tools.pipeline.task import TaskInput
from data_tools.readers.files import open_input
from data_tools.readers.record import BadRecord, RangeCount, ReadOptions, Record

_BATCH_ROWS = 1024


def read_parquet(part: TaskInput, options: ReadOptions, count: RangeCount) -> Iterator[Record | BadRecord]:
    """The rows of a file; see `record.Reader`. A damaged file or row group is one bad record."""
    pyarrow, parquet = _pyarrow()
    with open_input(part.path) as stream:
        row = 0
        try:
            file = parquet.ParquetFile(stream)
            names = file.schema_arrow.names
            if options.text_key not in names:
                yield BadRecord(0, "missing_text", f"no column {options.text_key!r}; columns: {', '.join(names[:8])}")
                return
            columns = [options.text_key, *options.kept(names)]
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
                for values in _rows(batch, options.text_key):
                    yield _record(row, values, options)
                    row += 1
        except (pyarrow.ArrowException, OSError) as error:
            yield BadRecord(row, "corrupt_stream", f"{error}; every row after it is lost")
        count.lines = row


def _rows(batch: Any, text_key: str) -> Iterator[dict[str, Any]]:
    """Rows one by one; a text that is not UTF-8 stays bytes, for Arrow checks none when it reads."""
    table = batch.to_pydict() if _is_valid(batch) else None
    for row in range(batch.num_rows):
        if table is not None:
            yield {key: column[row] for key, column in table.items()}
        else:
            yield {key: _value(batch.column(key)[row]) for key in batch.schema.names}


def _is_valid(batch: Any) -> bool:
    try:
        batch.validate(full=True)
    except ValueError:
        return False
    return True


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return bytes(scalar.as_buffer())


def _record(row: int, values: dict[str, Any], options: ReadOptions) -> Record | BadRecord:
    text = values.pop(options.text_key)
    if isinstance(text, bytes):
        return BadRecord(row, "invalid_utf8", "the text is not UTF-8")
    if not isinstance(text, str):
        return BadRecord(row, "text_not_string", f"{options.text_key!r} is {type(text).__name__}, not a string")
    if not text:
        return BadRecord(row, "empty", f"{options.text_key!r} is the empty string")
    if len(text) > options.max_document_bytes or len(text.encode("utf-8")) > options.max_document_bytes:
        return BadRecord(row, "too_long", f"more than max_document_bytes={options.max_document_bytes} bytes")
    return Record(row, row, text, values)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError("Parquet needs pyarrow; run: pip install 'qwen-megatron[data]'") from error
    return pyarrow, pyarrow.parquet
