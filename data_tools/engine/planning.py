"""Input files to parts: large plain JSON Lines files are cut into byte ranges, small files are put together.

The plan depends on the files and on `split_bytes`, never on the number of workers.
"""

from collections.abc import Iterable, Sequence

from data_tools.io.file_range import FileRange
from data_tools.io.streams import compression_of
from data_tools.readers.files import open_input

SPLIT_BYTES = 256 * 1024 * 1024


def plan_parts(files: Iterable[FileRange], file_format: str, split_bytes: int = SPLIT_BYTES) -> list[list[FileRange]]:
    """Groups ranges of ``files`` so that each group is about ``split_bytes`` bytes.

    Args:
        files: whole files, in order.
        file_format: of all of them; only plain JSON Lines can be cut.
        split_bytes: bytes as they are stored.
    Returns:
        the parts in the order of the files; together they cover every file exactly once.
    Raises:
        DataError: a file cannot be opened.
    """
    parts: list[list[FileRange]] = []
    group: list[FileRange] = []
    group_bytes = 0
    for file in files:
        if file.size_bytes > split_bytes and file_format == "jsonl" and not _is_compressed(file.path):
            if group:
                parts.append(group)
                group, group_bytes = [], 0
            parts += [[one] for one in _ranges(file, split_bytes)]
            continue
        if group and group_bytes + file.size_bytes > split_bytes:
            parts.append(group)
            group, group_bytes = [], 0
        group.append(file)
        group_bytes += file.size_bytes
    return [*parts, group] if group else parts


def group_neighbours(sizes: Sequence[int], most_alone: int, largest: int) -> list[range]:
    """Puts neighbouring files together, so that files that many read do not become too many.

    Args:
        sizes: of the files, in order.
        most_alone: so many files are each left alone.
        largest: size of a group; one file may be larger.
    Returns:
        the numbers of the files of each group; together they are all files in order.
    """
    if len(sizes) <= most_alone:
        return [range(number, number + 1) for number in range(len(sizes))]
    found, first, held = [], 0, 0
    for number, size in enumerate(sizes):
        if number > first and held + size > largest:
            found.append(range(first, number))
            first, held = number, 0
        held += size
    return [*found, range(first, len(sizes))]


def _ranges(file: FileRange, split_bytes: int) -> list[FileRange]:
    stops = [*range(split_bytes, file.size_bytes, split_bytes), file.size_bytes]
    return [
        FileRange(path=file.path, start=start, stop=stop, size_bytes=file.size_bytes, mtime_ns=file.mtime_ns)
        for start, stop in zip([0, *stops[:-1]], stops, strict=True)
    ]


def _is_compressed(path: str) -> bool:
    with open_input(path) as stream:
        return compression_of(stream, path) != "none"
