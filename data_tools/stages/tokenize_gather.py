"""Runs to a token file and its checksums: tasks that each write a stretch of the file, past the page cache.

A stretch is the window of the corpus, in tokens, that a task gathers: whole segments, one bucket of key ranges after
the other. A segment is a multiple of any page, so no two processes, or machines on a network file system, write the
same one, and its SHA-256 and CRCs are taken from memory as it is written: the file is not read again. Where a stretch
ends within a range of keys, two tasks look at the entries of that range, and each reads the tokens that are its own.

A task opens each run once, however many buckets it has, and reads of an index what its buckets need.
"""

import contextlib
import os
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_tools.corpus.writer import TOKEN_DTYPE
from data_tools.engine.input_list import read_input_list, write_input_list
from data_tools.engine.runner import Runner
from data_tools.engine.task import Manifest, Task, TaskResult
from data_tools.io.atomic_file import atomic_output, open_unfollowed
from data_tools.io.checksums import BLOCK_BYTES, SEGMENT_BYTES, StreamChecksums
from data_tools.io.direct_file import DirectFile
from data_tools.io.system_errors import naming
from data_tools.io.work_done import count_bytes
from data_tools.stages.tokenize_bucket import Bucket
from data_tools.stages.tokenize_runs import Runs, RunSizes

# So many buckets, to occupy the workers, if none becomes smaller than a segment.
_BUCKETS = 8
# So many tasks at most: each opens every run.
_MOST_TASKS = 128
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
        the token file, and the manifests of its stretches in order, each with NAME.lengths, NAME.crc and the values
        `tokens`, `digests`, the SHA-256 of each segment, and `segment_bytes`.
    """
    files = [
        manifest.output(f"{run}.{suffix}")
        for manifest in encoded
        for run in manifest.values["runs"]
        for suffix in ("index", "tokens")
    ]
    run_list = write_input_list(folder / "runs.json", files)
    with Runs(files, sizes.num_ranges) as runs:
        of_runs = (_range_tokens(runs, run, sizes.num_ranges) for run in range(len(runs)))
        # In order, a run is a range.
        range_tokens = sum(of_runs) if shuffle else [tokens.sum() for tokens in of_runs]
    ends = np.concatenate(([0], np.cumsum(range_tokens, dtype=np.int64))).tolist()
    target = folder / f"tokens-{run_list.sha256}.bin"
    _forget_stretches_of_missing(target)
    tasks = [
        Task(
            operation="tokenize_bucket",
            folder=str(folder / "buckets"),
            name=f"bucket-{number:06d}",
            options={
                **_buckets_of(window, ends, sizes.run_tokens),
                "window": window,
                "num_ranges": sizes.num_ranges,
                "shuffle": shuffle,
                "total": ends[-1],
                "segment_bytes": SEGMENT_BYTES,
                "target": target.name,
            },
            inputs=(run_list,),
            read_bytes=TOKEN_DTYPE.itemsize * (window[1] - window[0]),
        )
        for number, window in enumerate(_windows(ends[-1], sizes.run_tokens))
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


def _windows(num_tokens: int, run_tokens: int) -> list[tuple[int, int]]:
    """The stretches of the file that tasks write, in tokens: whole segments, about as many tokens as a bucket has."""
    segment = SEGMENT_BYTES // TOKEN_DTYPE.itemsize
    wanted = min(run_tokens, num_tokens // _BUCKETS)
    fewest = -(-num_tokens // _MOST_TASKS)
    step = segment * max(wanted // segment, -(-fewest // segment), 1)
    return [(first, min(first + step, num_tokens)) for first in range(0, num_tokens, step)]


def _buckets_of(window: tuple[int, int], ends: Sequence[int], bucket_tokens: int) -> dict[str, Any]:
    """The ranges that have tokens in a window, as buckets of at most ``bucket_tokens``, if a range is not more.

    Args:
        ends: tokens before each range, and of all.
    Returns:
        `borders`, the first range of each bucket and the one after the last; `first`, the tokens before the first one.
    """
    start, stop = window
    begin = bisect_right(ends, start) - 1
    borders = [begin]
    for number in range(begin + 1, bisect_left(ends, stop)):
        if min(ends[number + 1], stop) - max(ends[borders[-1]], start) > bucket_tokens:
            borders.append(number)
    return {"borders": [*borders, bisect_left(ends, stop)], "first": ends[begin]}


def _forget_stretches_of_missing(target: Path) -> None:
    """A stretch is done only as long as the file that it is of is there.

    The file is created before the first manifest, so manifests seen before the file was found missing are stale.
    """
    stale = [*(target.parent / "buckets").glob("bucket-*.manifest.json")]
    if not target.exists():
        for path in stale:
            path.unlink(missing_ok=True)


def gather_bucket(task: Task) -> TaskResult:
    """The operation `tokenize_bucket`: a stretch of the token file, out of some buckets of keys of every run.

    Outputs are NAME.lengths, tokens of each document that begins there, and NAME.crc, a CRC for each block.
    """
    options = task.options
    files = read_input_list(task.inputs[0])
    target = Path(task.folder).parent / options["target"]
    lengths: list[npt.NDArray[np.int32]] = []
    checksums = StreamChecksums(BLOCK_BYTES, options["segment_bytes"])
    itemsize = TOKEN_DTYPE.itemsize
    start, stop = options["window"]
    with naming(target):
        _make_room(target, itemsize * options["total"])
        file = DirectFile(target, flags=os.O_NOFOLLOW, num_blocks=2)
    with contextlib.ExitStack() as unfinished:
        unfinished.callback(file.close)
        with Runs(files, options["num_ranges"]) as runs:
            for piece in _pieces(runs, options, lengths):
                with naming(target):
                    file.write(piece, itemsize * start if checksums.size_bytes == 0 else None)
                checksums.update(piece)
                count_bytes(len(piece))
        if checksums.size_bytes != itemsize * (stop - start):
            raise RuntimeError(f"{task.name}: {checksums.size_bytes} bytes for {stop - start} tokens; this is a bug")
        all_lengths = np.concatenate(lengths)
        contents = {f"{task.name}.lengths": all_lengths.tobytes(), f"{task.name}.crc": checksums.crc_bytes()}
        for name, content in contents.items():
            with atomic_output(Path(task.folder, name), sync=False) as stream:
                stream.write(content)
        unfinished.pop_all()
    return TaskResult(
        outputs=list(contents),
        records_in=len(all_lengths),
        records_out=len(all_lengths),
        values={
            "tokens": stop - start,
            "digests": [digest.hex() for digest in checksums.segment_digests()],
            "segment_bytes": options["segment_bytes"],
        },
        check=lambda: _finish(file, target),
    )


def _finish(file: DirectFile, target: Path) -> None:
    """Waits for the disk."""
    try:
        with naming(target):
            file.finish()
    finally:
        file.close()


def _make_room(target: Path, num_bytes: int) -> None:
    descriptor = open_unfollowed(target, os.O_WRONLY | os.O_CREAT)
    try:
        if os.fstat(descriptor).st_size < num_bytes:
            os.ftruncate(descriptor, num_bytes)
    finally:
        os.close(descriptor)


def _pieces(runs: Runs, options: Mapping[str, Any], lengths: list[npt.NDArray[np.int32]]) -> Iterator[memoryview]:
    """The bytes of a task's window, one bucket in memory at a time; ``lengths`` gets those of their documents."""
    first = options["first"]
    for slices in _slices(runs, options["borders"], shuffle=options["shuffle"]):
        bucket = Bucket(runs, slices, first, tuple(options["window"]))
        first = bucket.stop
        lengths.append(bucket.lengths())
        yield from bucket.pieces()


def _slices(
    runs: Runs, borders: Sequence[int], *, shuffle: bool
) -> Iterator[Sequence[tuple[int, npt.NDArray[np.void]]]]:
    if not shuffle:
        for run in range(borders[0], borders[-1]):
            # All keys are 0.
            yield [(run, runs.places(run, 0, 1))]
        return
    places = [runs.places(run, borders[0], borders[-1])[np.array(borders) - borders[0]] for run in range(len(runs))]
    for number, _ in enumerate(pairwise(borders)):
        yield [(run, one[number : number + 2]) for run, one in enumerate(places)]
