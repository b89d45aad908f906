"""Runs to a token file: one task for each range of shuffle keys, every one writes its own range of the file.

Only whole blocks of 64 KiB are written in place; what a range has of the blocks that it shares with its neighbours goes
to a file of the task and is put in by `tokenize_seal`. So no two processes, or machines on a network file system, write
the same page.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_tools.corpus.document_order import ordered_pieces
from data_tools.corpus.writer import TOKEN_DTYPE
from data_tools.engine.input_list import read_input_list, write_input_list
from data_tools.engine.runner import Runner
from data_tools.engine.task import Manifest, Task, TaskResult
from data_tools.errors import DataError
from data_tools.io.atomic_file import atomic_output, open_unfollowed
from data_tools.io.checksums import read_pieces
from data_tools.io.system_errors import naming
from data_tools.stages.tokenize_encode import ENTRY
from data_tools.tokenizer.qwen import END_OF_DOCUMENT

# So many, to occupy the workers, if none becomes too small to be worth its files.
_BUCKETS = 8
_SMALLEST_BUCKET_TOKENS = 2 * 1024 * 1024
# A longer document that is alone in its run is copied from there, not held in memory.
_LARGE_TOKENS = 1024 * 1024
# Of a block that is written in place: no page of any machine is larger.
_BLOCK_BYTES = 65536
_TOKEN_FILE = re.compile(r"tokens-[0-9a-f]{64}\.bin")


def gather_runs(
    runner: Runner, folder: Path, encoded: Sequence[Manifest], tokens_in_memory: int, *, shuffle: bool
) -> tuple[Path, list[Manifest]]:
    """The tokens of all runs in corpus order.

    Args:
        runner: does the tasks.
        folder: where tokens-*.bin and the folder of the tasks go.
        encoded: manifests of `tokenize_encode`, at least one with a run.
        tokens_in_memory: about how many tokens one task holds.
        shuffle: whether the runs are sorted by key; else their order is the corpus's.
    Returns:
        the token file, whole but for the edges of the ranges, and the manifests of the ranges.
    """
    runs = [
        manifest.output(f"{run}.{suffix}")
        for manifest in encoded
        for run in manifest.values["runs"]
        for suffix in ("index", "tokens")
    ]
    run_list = write_input_list(folder / "runs.json", runs)
    num_tokens = sum(manifest.values["tokens"] for manifest in encoded)
    # Without a shuffle a bucket is a run: they are in order already.
    bucket_tokens = min(tokens_in_memory, max(num_tokens // _BUCKETS, _SMALLEST_BUCKET_TOKENS))
    num_buckets = -(-num_tokens // bucket_tokens) if shuffle else len(runs) // 2
    sizes = _bucket_tokens([Path(one.path) for one in runs[::2]], num_buckets, shuffle=shuffle)
    target = folder / f"tokens-{run_list.sha256}.bin"
    _forget_ranges_of_missing(target)
    buckets = [
        Task(
            operation="tokenize_bucket",
            folder=str(folder / "buckets"),
            name=f"bucket-{number:06d}",
            options={
                "bucket": number,
                "num_buckets": num_buckets,
                "shuffle": shuffle,
                "start": start,
                "total": num_tokens,
                "target": target.name,
            },
            inputs=(run_list,),
        )
        for number, start in enumerate((np.cumsum(sizes) - sizes).tolist())
    ]
    gathered = runner.run(folder / "buckets", buckets)
    if runner.is_alone:
        for stale in folder.glob("tokens-*.bin"):
            if stale != target and _TOKEN_FILE.fullmatch(stale.name):
                stale.unlink()
    return target, gathered


def _bucket_tokens(indices: Sequence[Path], num_buckets: int, *, shuffle: bool) -> npt.NDArray[np.int64]:
    sizes = np.zeros(num_buckets, dtype=np.int64)
    for number, path in enumerate(indices):
        index = np.fromfile(path, dtype=ENTRY)
        tokens = np.concatenate(([0], np.cumsum(index["length"], dtype=np.int64) + np.arange(1, len(index) + 1)))
        if not shuffle:
            sizes[number] = tokens[-1]
            continue
        sizes += np.diff(tokens[_bucket_borders(index, num_buckets)])
    return sizes


def _bucket_borders(index: npt.NDArray[Any], num_buckets: int) -> npt.NDArray[np.int64]:
    """[num_buckets + 1] first entry of each bucket, then the number of entries."""
    lows = np.array([bucket * 2**64 // num_buckets for bucket in range(num_buckets)], dtype=np.uint64)
    return np.append(np.searchsorted(np.ascontiguousarray(index["key"]), lows), len(index))


def _forget_ranges_of_missing(target: Path) -> None:
    """A range is done only as long as the file it was written into is there.

    The file is created before the first manifest, so manifests seen before the file was found missing are stale.
    """
    stale = list((target.parent / "buckets").glob("bucket-*.manifest.json"))
    if not target.exists():
        for path in stale:
            path.unlink(missing_ok=True)


def gather_bucket(task: Task) -> TaskResult:
    """The operation `tokenize_bucket`: one range of keys out of every run, in corpus order, into its place.

    Outputs are NAME.lengths, tokens of each document, and NAME.edges, the bytes before the first and after the last
    whole block of the range.
    """
    options = task.options
    files = read_input_list(task.inputs[0])
    runs = [(Path(index.path), Path(tokens.path)) for index, tokens in zip(files[::2], files[1::2], strict=True)]
    if not options["shuffle"]:
        runs = runs[options["bucket"] : options["bucket"] + 1]
    bucket = _Bucket(runs, options["bucket"], options["num_buckets"], shuffle=options["shuffle"])
    target = Path(task.folder).parent / options["target"]
    descriptor = open_unfollowed(target, os.O_WRONLY | os.O_CREAT)
    try:
        with naming(target):
            if os.fstat(descriptor).st_size < 4 * options["total"]:
                os.ftruncate(descriptor, 4 * options["total"])
            edges = _write_range(descriptor, 4 * options["start"], bucket.pieces())
    finally:
        os.close(descriptor)
    contents = {f"{task.name}.lengths": bucket.lengths().tobytes(), f"{task.name}.edges": b"".join(edges)}
    for name, content in contents.items():
        with atomic_output(Path(task.folder, name), sync=False) as stream:
            stream.write(content)
    return TaskResult(
        outputs=list(contents),
        records_in=len(bucket.entries),
        records_out=len(bucket.entries),
        values={"start": 4 * options["start"], "stop": 4 * options["start"] + bucket.num_bytes, "head": len(edges[0])},
        written=[target],
    )


class _Bucket:
    """The entries of one range of keys, sorted, and the tokens of all but very long documents."""

    def __init__(self, runs: Sequence[tuple[Path, Path]], bucket: int, num_buckets: int, *, shuffle: bool) -> None:
        entries, starts = [np.empty(0, dtype=ENTRY)], [np.empty(0, dtype=np.int64)]
        self._large: dict[int, Path] = {}
        self._reads: list[tuple[Path, int, int]] = []  # file, first token, tokens
        num_entries = self._num_tokens = 0
        for index_path, tokens_path in runs:
            index = np.memmap(index_path, dtype=ENTRY, mode="r")
            first, last = 0, len(index)
            if shuffle:
                low, high = bucket * 2**64 // num_buckets, (bucket + 1) * 2**64 // num_buckets
                first = int(np.searchsorted(index["key"], np.uint64(low)))
                last = len(index) if high == 2**64 else int(np.searchsorted(index["key"], np.uint64(high)))
            if first == last:
                continue
            part = np.array(index[first:last])
            lengths = part["length"].astype(np.int64) + 1
            if len(index) == 1 and lengths[0] > _LARGE_TOKENS:
                self._large[num_entries] = tokens_path
                starts.append(np.array([-1]))
            else:
                begin = int(index["length"][:first].sum(dtype=np.int64)) + first
                count = int(lengths.sum())
                self._reads.append((tokens_path, begin, count))
                starts.append(self._num_tokens + np.cumsum(lengths) - lengths)
                self._num_tokens += count
            entries.append(part)
            num_entries += len(part)
        self.entries = np.concatenate(entries)
        self._starts = np.concatenate(starts)
        self._order = np.lexsort((self.entries["offset"], self.entries["file"], self.entries["key"]))
        self.num_bytes = 4 * (int(self.entries["length"].sum(dtype=np.int64)) + len(self.entries))

    def lengths(self) -> npt.NDArray[np.int32]:
        """[documents] int32 tokens of each document in corpus order, the end token included."""
        return np.ascontiguousarray(self.entries["length"][self._order]) + np.int32(1)

    def pieces(self) -> Iterator[memoryview]:
        """The bytes of the documents in corpus order, each followed by its end token."""
        tokens = self._read_tokens()
        lengths = np.ascontiguousarray(self.entries["length"])
        large = np.isin(self._order, list(self._large)).nonzero()[0].tolist()
        for begin, stop in zip([0, *(place + 1 for place in large)], [*large, len(self._order)], strict=True):
            # The documents of runs have their end tokens already; the kernel writes each anew.
            for piece in ordered_pieces(tokens, self._starts, lengths, self._order[begin:stop], END_OF_DOCUMENT):
                yield piece.data.cast("B")
            if stop < len(self._order):
                for content in read_pieces(self._large[int(self._order[stop])]):
                    yield memoryview(content)

    def _read_tokens(self) -> npt.NDArray[np.int32]:
        tokens = np.empty(self._num_tokens, dtype=TOKEN_DTYPE)
        position = 0
        for path, begin, count in self._reads:
            with path.open("rb", buffering=0) as stream:
                stream.seek(4 * begin)
                room = tokens[position : position + count].data.cast("B")
                while room:
                    size = stream.readinto(room)
                    if not size:
                        raise DataError(f"{path}: {len(room)} bytes are missing; delete it and run again")
                    room = room[size:]
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
