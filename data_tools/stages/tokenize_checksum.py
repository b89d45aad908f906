"""A gathered token file to its checksums: one task for some of its segments, so that no core reads all of it.

A task also puts in what the ranges have of the blocks in its segments that they share; every block is in one segment.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from data_tools.corpus.writer import TOKEN_DTYPE
from data_tools.engine.runner import Runner
from data_tools.engine.task import Manifest, Task, TaskResult
from data_tools.io.atomic_file import atomic_output, open_unfollowed
from data_tools.io.checksums import BLOCK_BYTES, SEGMENT_BYTES, StreamChecksums, read_pieces
from data_tools.io.file_range import FileRange
from data_tools.io.system_errors import naming
from data_tools.io.work_done import count_bytes

CHECKSUMS = "checksums"
# So many tasks at most, each of whole segments.
_MOST_TASKS = 1024


def take_checksums(runner: Runner, folder: Path, target: Path, gathered: Sequence[Manifest]) -> list[Manifest]:
    """CRCs and SHA-256s of the segments of a token file, in order; afterwards it is whole.

    Args:
        runner: does the tasks.
        folder: of the tokenization.
        target, gathered: the result of `tokenize_gather.gather_runs`.
    Returns:
        manifests with NAME.crc and the values `digests`, the SHA-256 of each segment, and `segment_bytes`.
    """
    size = TOKEN_DTYPE.itemsize * sum(one.values["tokens"] for one in gathered)
    step = SEGMENT_BYTES * -(-size // SEGMENT_BYTES // _MOST_TASKS)
    tasks = []
    for number, first in enumerate(range(0, size, step)):
        stop = min(first + step, size)
        ranges = [one for one in gathered if one.values["start"] < stop and one.values["stop"] > first]
        # The name of the file is the hash of all runs.
        content = FileRange(path=str(target), start=first, stop=stop, size_bytes=size, sha256=target.stem)
        tasks.append(
            Task(
                operation="tokenize_checksum",
                folder=str(folder / CHECKSUMS),
                name=f"part-{number:06d}",
                options={
                    "first": first,
                    "segment_bytes": SEGMENT_BYTES,
                    "ranges": [[one.values[key] for key in ("start", "stop", "head")] for one in ranges],
                },
                inputs=(content, *(one.output(f"{one.name}.edges") for one in ranges)),
                read_bytes=stop - first,
            )
        )
    return runner.run(folder / CHECKSUMS, tasks)


def checksum_segments(task: Task) -> TaskResult:
    """The operation `tokenize_checksum`: edges put into some segments, then their CRCs to NAME.crc."""
    content, *edges = task.inputs
    assert content.stop is not None
    path = Path(content.path)
    _put_in_edges(path, content.start, content.stop, task.options["ranges"], edges)
    checksums = StreamChecksums(BLOCK_BYTES, task.options["segment_bytes"])
    for piece in read_pieces(path, content.start, content.stop):
        checksums.update(piece)
        count_bytes(len(piece))
    name = f"{task.name}.crc"
    with atomic_output(Path(task.folder, name), sync=False) as stream:
        stream.write(checksums.crc_bytes())
    digests = [digest.hex() for digest in checksums.segment_digests()]
    values = {"digests": digests, "segment_bytes": task.options["segment_bytes"]}
    return TaskResult(outputs=[name], values=values, written=[path])


def _put_in_edges(
    target: Path, first: int, last: int, ranges: Sequence[tuple[int, int, int]], files: Sequence[FileRange]
) -> None:
    """Writes what each range has of the blocks from ``first`` to ``last`` that it shares; again the same bytes."""
    descriptor = open_unfollowed(target, os.O_WRONLY)
    try:
        for (start, stop, num_head), file in zip(ranges, files, strict=True):
            edges = Path(file.path).read_bytes()
            head, tail = edges[:num_head], edges[num_head:]
            with naming(target):
                for content, place in ((head, start), (tail, stop - len(tail))):
                    if first <= place < last:
                        os.pwrite(descriptor, content, place)
    finally:
        os.close(descriptor)
