"""What a run is: documents sorted by shuffle key, their tokens in one file, and an index that says where keys begin.

The 2^64 keys are cut into equal ranges, as many for every run of a corpus. The index begins with the place of each
range, so that a reader of some of them finds entries and tokens without looking at any other entry.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import numpy.typing as npt

from data_tools.corpus.writer import TOKEN_DTYPE
from data_tools.engine.planning import group_neighbours
from data_tools.errors import DataError
from data_tools.io.direct_file import ALIGNMENT, NOT_DIRECT, large_pages, no_longer_direct, open_direct
from data_tools.io.file_range import FileRange
from data_tools.io.open_files import files_to_keep_open

ENTRY = np.dtype([("key", "<u8"), ("file", "<u4"), ("offset", "<u8"), ("length", "<i4")])
PLACE = np.dtype([("entry", "<u8"), ("token", "<u8")])

# What is read past the page cache begins and ends between so many tokens.
PAGE_TOKENS = ALIGNMENT // TOKEN_DTYPE.itemsize

# Most tokens of a run and of a bucket unless told otherwise; 2 GiB.
TOKENS_IN_MEMORY = 512 * 1024 * 1024
# Where inputs are small; 128 MiB.
_SMALLEST_RUN_TOKENS = 32 * 1024 * 1024
# What a bucket should find in a run: so much that finding it takes less time than reading it, 1 MiB.
_SLICE_TOKENS = 256 * 1024
# Of text, as it is estimated before anything is encoded.
_BYTES_PER_TOKEN = 4
_FEWEST_RANGES = 64
# Ranges in a bucket by that estimate: enough for buckets of about equal size, were it four times too low.
_RANGES_PER_BUCKET = 16
# Parts that the input is cut into: enough to share among many workers, each large enough to be worth a file.
_PARTS = 512
_SMALLEST_PART_BYTES = 16 * 1024 * 1024
_LARGEST_PART_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True)
class RunSizes:
    """How large the pieces of a tokenization are, by the size of its input alone.

    Every bucket finds a slice in every run: with runs and buckets of a fixed size there would be a hundred times as
    many slices, each a tenth as long, for ten times the input. Both therefore grow with the root of the input, and the
    number of slices in proportion to it, as long as memory allows.

    Attributes:
        run_tokens: most tokens of a run and about those of a bucket, a power of two or the limit.
        num_ranges: of shuffle keys, a power of two; a bucket is some of them.
        part_bytes: of text for each task that encodes.
    """

    run_tokens: int
    num_ranges: int
    part_bytes: int

    @classmethod
    def of(cls, text_bytes: int, tokens_in_memory: int = TOKENS_IN_MEMORY) -> "RunSizes":
        """The sizes for ``text_bytes`` of text, runs and buckets no larger than ``tokens_in_memory`` tokens."""
        num_tokens = text_bytes // _BYTES_PER_TOKEN
        wanted = _power_of_two(math.isqrt(num_tokens * _SLICE_TOKENS))
        run_tokens = min(max(wanted, _SMALLEST_RUN_TOKENS), tokens_in_memory)
        ranges = _power_of_two(_RANGES_PER_BUCKET * num_tokens // run_tokens)
        # A part that is no larger than a run in most languages: a second, small run would cost as much as the first.
        largest = max(_LARGEST_PART_BYTES, _BYTES_PER_TOKEN * run_tokens)
        return cls(
            run_tokens=run_tokens,
            num_ranges=max(ranges, _FEWEST_RANGES),
            part_bytes=min(max(text_bytes // _PARTS, _SMALLEST_PART_BYTES), largest),
        )

    def groups(self, text_bytes: Sequence[int]) -> list[range]:
        """Files of so many bytes of text, put together for tasks that encode; few files are left alone."""
        return group_neighbours(text_bytes, _PARTS, self.part_bytes)


def _power_of_two(least: int) -> int:
    return 1 << max(least - 1, 0).bit_length()


def index_content(entries: npt.NDArray[np.void], num_ranges: int) -> bytes:
    """The content of a run's index.

    Args:
        entries: [n] ENTRY, sorted; each document has one token more than its `length`, the end.
        num_ranges: a power of two, at least 2.
    Returns:
        [num_ranges + 1] PLACE of the first entry of each range and of its first token, then of the end; then the
        entries.
    """
    shift = np.uint64(64 - (num_ranges.bit_length() - 1))
    keys = np.ascontiguousarray(entries["key"])
    first = np.append(np.searchsorted(keys, np.arange(num_ranges, dtype=np.uint64) << shift), len(entries))
    tokens = np.zeros(len(entries) + 1, dtype=np.int64)
    np.cumsum(entries["length"] + np.int64(1), out=tokens[1:])
    places = np.empty(num_ranges + 1, dtype=PLACE)
    places["entry"], places["token"] = first, tokens[first]
    return places.tobytes() + entries.tobytes()


def tokens_around(first: int, count: int) -> int:
    """Tokens of the pages that tokens ``first`` to ``first + count`` are in."""
    return -(-(first % PAGE_TOKENS + count) // PAGE_TOKENS) * PAGE_TOKENS


def room_for(num_tokens: int) -> npt.NDArray[np.int32]:
    """[num_tokens] zeros, in memory that begins with a page."""
    return np.frombuffer(large_pages(max(TOKEN_DTYPE.itemsize * num_tokens, 1)), dtype=np.int32, count=num_tokens)


class Runs:
    """The files of all runs, each opened once for as long as the block lasts, if the limit of open files allows it."""

    def __init__(self, files: Sequence[FileRange], num_ranges: int) -> None:
        """Takes index and tokens of each run in turn; ``num_ranges`` as they were written with."""
        self._paths = [one.path for one in files]
        self._num_ranges = num_ranges
        self._kept: dict[int, int] = {}
        self._most_kept = files_to_keep_open(len(files))

    def __enter__(self) -> "Runs":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._kept:
            os.close(self._kept.popitem()[1])

    def __len__(self) -> int:
        return len(self._paths) // 2

    def places(self, run: int, first: int, stop: int) -> npt.NDArray[np.void]:
        """[stop - first + 1] PLACE of the ranges ``first`` to ``stop - 1`` of a run, and of what comes after them."""
        places = np.empty(stop - first + 1, dtype=PLACE)
        self._read(2 * run, PLACE.itemsize * first, places.data.cast("B"))
        return places

    def entries(self, run: int, first: int, stop: int) -> npt.NDArray[np.void]:
        """[stop - first] ENTRY of a run from entry ``first`` on."""
        entries = np.empty(stop - first, dtype=ENTRY)
        header = PLACE.itemsize * (self._num_ranges + 1)
        self._read(2 * run, header + ENTRY.itemsize * first, entries.data.cast("B"))
        return entries

    def read_tokens(self, run: int, first: int, count: int, room: npt.NDArray[np.int32]) -> None:
        """Reads tokens ``first`` to ``first + count`` of a run past the page cache, where the system can do that.

        Args:
            room: [tokens_around(first, count)] of `room_for`, or a whole number of pages behind its beginning. What is
                wanted comes to place ``first % PAGE_TOKENS``, the tokens beside it, if there are any, around it.
        """
        lead = first % PAGE_TOKENS
        itemsize = TOKEN_DTYPE.itemsize
        self._read(2 * run + 1, itemsize * (first - lead), room.data.cast("B"), needed=itemsize * (lead + count))

    def _read(self, number: int, position: int, room: memoryview, needed: int | None = None) -> None:
        """Fills ``room``; behind the first ``needed`` bytes the file may end."""
        end = position + (len(room) if needed is None else needed)
        path = self._paths[number]
        descriptor = self._kept.pop(number, None)
        if descriptor is None:
            descriptor = self._open(number)
        try:
            while position < end:
                try:
                    size = os.preadv(descriptor, [room], position)
                except OSError as error:
                    # Some file systems open a file so and do not read it so.
                    if error.errno in NOT_DIRECT and no_longer_direct(descriptor):
                        continue
                    raise
                if not size:
                    raise DataError(f"{path}: {end - position} bytes are missing; delete it and run again")
                room, position = room[size:], position + size
        except OSError as error:
            error.filename = path
            raise
        finally:
            if len(self._kept) < self._most_kept:
                self._kept[number] = descriptor
            else:
                os.close(descriptor)

    def _open(self, number: int) -> int:
        is_tokens = number % 2 == 1
        direct = open_direct(self._paths[number], os.O_RDONLY) if is_tokens else None
        return os.open(self._paths[number], os.O_RDONLY | os.O_CLOEXEC) if direct is None else direct
