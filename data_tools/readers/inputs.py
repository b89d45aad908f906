"""All records of the files that a command is given, one after the other."""

from collections.abc import Callable, Iterator, Sequence

from data_tools.errors import RefusedError
from data_tools.io.progress import Progress, SilentProgress
from data_tools.readers.files import find_files
from data_tools.readers.formats import format_of, reader_of
from data_tools.readers.jsonl import Rejection
from data_tools.readers.record import BadRecord, RangeCount, ReadOptions, Record

# Is given every record that is left out.
Reject = Callable[[Rejection], None]


def read_records(
    pattern: str, options: ReadOptions, progress: Progress | None = None
) -> Iterator[tuple[str, Record | BadRecord]]:
    """Every record of the files that ``pattern`` names, with its file.

    Raises:
        DataError: a file cannot be found or opened.
    """
    progress = progress or SilentProgress()
    for file in find_files(pattern):
        left = file.size_bytes
        for record in reader_of(format_of(file.path))(file, options, RangeCount()):
            yield file.path, record
            if isinstance(record, Record):
                # Only roughly: a compressed file gives more text than it has bytes.
                step = min(left, len(record.text))
                progress.advance(step)
                left -= step
        progress.advance(left)


def total_bytes(patterns: Sequence[str]) -> int:
    """Size of all files that the patterns name; refuses a file that two of them name.

    Raises:
        DataError: there is none.
        RefusedError: one is named twice.
    """
    total = 0
    seen: set[str] = set()
    for pattern in patterns:
        for file in find_files(pattern):
            if file.path in seen:
                raise RefusedError(f"{file.path}: named by two of the inputs; every file is read once")
            seen.add(file.path)
            total += file.size_bytes
    return total
