"""Runs to a token file: tasks that each take neighbouring buckets of keys, and write their own range of the file.

Only whole blocks of 64 KiB are written in place; what a range has of the blocks that it shares with its neighbours goes
to a file of the task and is put in by `tokenize_checksum`. So no two processes, or machines on a network file system,
write the same page.

A task opens each run once, however many buckets it has, and reads of an index what its buckets need.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_tools.corpus.document_order import ordered_pieces
from data_tools.corpus.writer import TOKEN_DTYPE
from data_tools.engine.input_list import read_input_list, write_input_list
from data_tools.engine.runner import Runner
from data_tools.engine.task import Manifest, Task, TaskResult
from data_tools.io.atomic_file import atomic_output, open_unfollowed
from data_tools.io.system_errors import naming
from data_tools.io.work_done import count_bytes
from data_tools.stages.tokenize_checksum import CHECKSUMS
from data_tools.stages.tokenize_runs import ENTRY, Runs, RunSizes
from data_tools.tokenizer.qwen import END_OF_DOCUMENT

# So many buckets, to occupy the workers, if none becomes too small to be worth its files.
_BUCKETS = 8
_SMALLEST_BUCKET_TOKENS = 2 * 1024 * 1024
# So many tasks at most: each opens every run.
_MOST_TASKS = 128
# A longer document that is alone in its slice of a run is copied from there, not held in memory.
_LARGE_TOKENS = 1024 * 1024
_PIECE_TOKENS = 2 * 1024 * 1024
# Of a block that is written in place: no page of any machine is larger.
_BLOCK_BYTES = 65536
_TOKEN_FILE = re.compile(r"tokens-[0-9a-f]{64}\.bin")


def gather_runs(
    runner: Runner, folder: Path, encoded: Sequence[Manifest], sizes: RunSizes, *, shuffle: bool
) -> tuple[Path, list[Manifest]]:
    """The tokens of all runs in corpus order.

    Args:
        runner: does the tasks.
        folder: where tokens-*.bin and the folder of the tasks go.
        encoded: manifests of `tokenize_encode`, at least one with a run.
        sizes: with which the runs were written; a task holds about as many tokens as a run has.
        shuffle: whether the runs are sorted by key; else their order is the corpus's.
    Returns:
        the token file, whole but for the edges of the ranges, and the manifests of the ranges.
    """
    files = [
        manifest.output(f"{run}.{suffix}")
        for manifest in encoded
        for run in manifest.values["runs"]
        for suffix in ("index", "tokens")
    ]
    run_list = write_input_list(folder / "runs.json", files)
    num_tokens = sum(manifest.values["tokens"] for manifest in encoded)
    with Runs(files, sizes.num_ranges) as runs:
        if shuffle:
            range_tokens = sum(_range_tokens(runs, run, sizes.num_ranges) for run in range(len(runs)))
            bucket_tokens = min(sizes.run_tokens, max(num_tokens // _BUCKETS, _SMALLEST_BUCKET_TOKENS))
        else:
            # A run is a bucket: they are in order already.
            range_tokens = np.array([_range_tokens(runs, run, sizes.num_ranges).sum() for run in range(len(runs))])
            bucket_tokens = 0
    ends = np.concatenate(([0], np.cumsum(range_tokens, dtype=np.int64))).tolist()
    borders = _borders(ends, bucket_tokens)
    target = folder / f"tokens-{run_list.sha256}.bin"
    _forget_ranges_of_missing(target)
    each = -(-(len(borders) - 1) // _MOST_TASKS)
    tasks = [
        Task(
            operation="tokenize_bucket",
            folder=str(folder / "buckets"),
            name=f"bucket-{number:06d}",
            options={
                "borders": borders[first : first + each + 1],
                "num_ranges": sizes.num_ranges,
                "shuffle": shuffle,
                "start": ends[borders[first]],
                "total": num_tokens,
                "target": target.name,
            },
            inputs=(run_list,),
            read_bytes=TOKEN_DTYPE.itemsize * (ends[borders[first : first + each + 1][-1]] - ends[borders[first]]),
        )
        for number, first in enumerate(range(0, len(borders) - 1, each))
    ]
    gathered = runner.run(folder / "buckets", tasks)
    if runner.is_alone:
        for stale in folder.glob("tokens-*.bin"):
            if stale != target and _TOKEN_FILE.fullmatch(stale.name):
                stale.unlink()
    return target, gathered


def _range_tokens(runs: Runs, run: int, num_ranges: int) -> npt.NDArray[np.int64]:
    tokens = runs.places(run, 0, num_ranges)["token"].astype(np.int64)
    return tokens[1:] - tokens[:-1]


def _borders(ends: Sequence[int], bucket_tokens: int) -> list[int]:
    """Where buckets of at most ``bucket_tokens`` tokens begin, and the end; one that cannot be cut may be larger.

    Args:
        ends: tokens before each range, and of all.
        bucket_tokens: 0 makes a bucket of each range.
    """
    borders = [0]
    for number in range(1, len(ends) - 1):
        if ends[number + 1] - ends[borders[-1]] > bucket_tokens:
            borders.append(number)
    return [*borders, len(ends) - 1]


def _forget_ranges_of_missing(target: Path) -> None:
    """A range, and the checksums of a segment, are done only as long as the file that they are of is there.

    The file is created before the first manifest, so manifests seen before the file was found missing are stale.
    """
    stale = [
        *(target.parent / "buckets").glob("bucket-*.manifest.json"),
        *(target.parent / CHECKSUMS).glob("part-*.manifest.json"),
    ]
    if not target.exists():
        for path in stale:
            path.unlink(missing_ok=True)


def gather_bucket(task: Task) -> TaskResult:
    """The operation `tokenize_bucket`: some buckets of keys out of every run, in corpus order, into their place.

    Outputs are NAME.lengths, tokens of each document, and NAME.edges, the bytes before the first and after the last
    whole block of the range.
    """
    options = task.options
    files = read_input_list(task.inputs[0])
    target = Path(task.folder).parent / options["target"]
    lengths: list[npt.NDArray[np.int32]] = []
    with Runs(files, options["num_ranges"]) as runs:
        descriptor = open_unfollowed(target, os.O_WRONLY | os.O_CREAT)
        try:
            with naming(target):
                if os.fstat(descriptor).st_size < 4 * options["total"]:
                    os.ftruncate(descriptor, 4 * options["total"])
                edges = _write_range(descriptor, 4 * options["start"], _pieces(runs, options, lengths))
        finally:
            os.close(descriptor)
    all_lengths = np.concatenate(lengths)
    contents = {f"{task.name}.lengths": all_lengths.tobytes(), f"{task.name}.edges": b"".join(edges)}
    for name, content in contents.items():
        with atomic_output(Path(task.folder, name), sync=False) as stream:
            stream.write(content)
    stop = options["start"] + int(all_lengths.sum(dtype=np.int64))
    return TaskResult(
        outputs=list(contents),
        records_in=len(all_lengths),
        records_out=len(all_lengths),
        values={
            "start": 4 * options["start"],
            "stop": 4 * stop,
            "head": len(edges[0]),
            "tokens": stop - options["start"],
        },
        written=[target],
    )


def _pieces(runs: Runs, options: Mapping[str, Any], lengths: list[npt.NDArray[np.int32]]) -> Iterator[memoryview]:
    """The bytes of a task's buckets, one bucket in memory at a time; ``lengths`` gets those of their documents."""
    for bucket in _buckets(runs, options["borders"], shuffle=options["shuffle"]):
        lengths.append(bucket.lengths())
        for piece in bucket.pieces():
            count_bytes(len(piece))
            yield piece


def _buckets(runs: Runs, borders: Sequence[int], *, shuffle: bool) -> Iterator["_Bucket"]:
    if not shuffle:
        for run in range(borders[0], borders[-1]):
            # All keys are 0.
            yield _Bucket(runs, [(run, runs.places(run, 0, 1))])
        return
    places = [runs.places(run, borders[0], borders[-1])[np.array(borders) - borders[0]] for run in range(len(runs))]
    for number in range(len(borders) - 1):
        yield _Bucket(runs, [(run, one[number : number + 2]) for run, one in enumerate(places)])


class _Bucket:
    """The entries of neighbouring ranges of keys, sorted, and the tokens of all but very long documents."""

    def __init__(self, runs: Runs, slices: Sequence[tuple[int, npt.NDArray[np.void]]]) -> None:
        """Reads the entries; of each run ``slices`` has the first place, and the one after the last."""
        entries, starts = [np.empty(0, dtype=ENTRY)], [np.empty(0, dtype=np.int64)]
        self._runs = runs
        self._large: dict[int, tuple[int, int, int]] = {}  # entry -> run, first token, tokens
        self._reads: list[tuple[int, int, int]] = []  # run, first token, tokens
        num_entries = self._num_tokens = 0
        for run, places in slices:
            (first, begin), (last, end) = places.tolist()
            if first == last:
                continue
            part = runs.entries(run, first, last - first)
            if len(part) == 1 and end - begin > _LARGE_TOKENS:
                self._large[num_entries] = (run, begin, end - begin)
                starts.append(np.array([-1]))
            else:
                lengths = part["length"].astype(np.int64) + 1
                self._reads.append((run, begin, end - begin))
                starts.append(self._num_tokens + np.cumsum(lengths) - lengths)
                self._num_tokens += end - begin
            entries.append(part)
            num_entries += len(part)
        self._entries = np.concatenate(entries)
        self._starts = np.concatenate(starts)
        self._order = np.lexsort((self._entries["offset"], self._entries["file"], self._entries["key"]))

    def lengths(self) -> npt.NDArray[np.int32]:
        """[documents] int32 tokens of each document in corpus order, the end token included."""
        return np.ascontiguousarray(self._entries["length"][self._order]) + np.int32(1)

    def pieces(self) -> Iterator[memoryview]:
        """The bytes of the documents in corpus order, each followed by its end token."""
        tokens = self._read_tokens()
        lengths = np.ascontiguousarray(self._entries["length"])
        large = np.isin(self._order, list(self._large)).nonzero()[0].tolist()
        for begin, stop in zip([0, *(place + 1 for place in large)], [*large, len(self._order)], strict=True):
            # The documents of runs have their end tokens already; the kernel writes each anew.
            for piece in ordered_pieces([tokens], self._starts, lengths, self._order[begin:stop], END_OF_DOCUMENT):
                yield piece.data.cast("B")
            if stop < len(self._order):
                yield from self._large_document(*self._large[int(self._order[stop])])

    def _large_document(self, run: int, begin: int, count: int) -> Iterator[memoryview]:
        buffer = np.empty(min(count, _PIECE_TOKENS), dtype=TOKEN_DTYPE)
        for first in range(begin, begin + count, len(buffer)):
            piece = buffer[: min(len(buffer), begin + count - first)]
            self._runs.read_tokens(run, first, piece)
            yield piece.data.cast("B")

    def _read_tokens(self) -> npt.NDArray[np.int32]:
        tokens = np.empty(self._num_tokens, dtype=TOKEN_DTYPE)
        position = 0
        for run, begin, count in self._reads:
            self._runs.read_tokens(run, begin, tokens[position : position + count])
            position += count
        return tokens


def _write_range(descriptor: int, position: int, pieces: Iterator[memoryview]) -> tuple[bytes, bytes]:
    """Writes the whole blocks of a range that begins at byte ``position``; gives the bytes before and after them."""
    head = bytearray()
    wanted = -position % _BLOCK_BYTES
    rest = bytearray()
    position += wanted
    for piece in pieces:
        taken = min(wanted - len(head), len(piece))
        head += piece[:taken]
        piece = piece[taken:]
        if rest:
            taken = min(_BLOCK_BYTES - len(rest), len(piece))
            rest += piece[:taken]
            piece = piece[taken:]
            if len(rest) < _BLOCK_BYTES:
                continue
            position += _write(descriptor, position, memoryview(bytes(rest)))
            rest.clear()
        whole = len(piece) - len(piece) % _BLOCK_BYTES
        position += _write(descriptor, position, piece[:whole])
        rest += piece[whole:]
    return bytes(head), bytes(rest)


def _write(descriptor: int, position: int, content: memoryview) -> int:
    done = 0
    while done < len(content):
        done += os.pwrite(descriptor, content[done:], position + done)
    return done
