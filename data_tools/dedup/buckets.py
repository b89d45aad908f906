"""The shuffle by band: bucket files written by shards, grouped one bucket at a time.

Document numbers must not depend on how the input is split into shards (file number and record number, say); then
neither do the edges, up to their order.
"""

import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from data_tools.dedup.minhash import DEFAULT, NO_SHINGLE, MinHashConfig, band_keys
from data_tools.errors import DataError
from data_tools.io.atomic_file import atomic_output, atomic_path, open_unfollowed, refuse_link
from data_tools.io.open_files import allow_open_files
from data_tools.io.system_errors import naming

RECORD = np.dtype([("key", "<u8"), ("document", "<u8")])

Edges = npt.NDArray[np.uint64]
"""[m, 2] document numbers, the smaller one first."""
Similar = Callable[[Edges], npt.NDArray[np.bool_]]


class BucketWriter:
    """Sends (band key, document) of one shard to its bucket files, `FOLDER/band-BBB-part-PPPP/SHARD.bin`.

    All records of one key come to one bucket. The files appear when the block ends well; if it ends by an exception
    none does.

    Args:
        folder: of all buckets; shared by all shards.
        shard: name of the shard, different for each.
        num_parts: power of two; buckets of one band, by the top bits of the key. More parts, less memory in
            `group_bucket`.
        buffer_bytes: records held in memory before they are written.
    Raises:
        DataError: num_parts is not a power of two.
    """

    def __init__(
        self,
        folder: Path,
        shard: str,
        config: MinHashConfig = DEFAULT,
        num_parts: int = 1,
        buffer_bytes: int = 64 << 20,
    ) -> None:
        if num_parts < 1 or num_parts & (num_parts - 1):
            raise DataError(f"buckets: num_parts={num_parts} must be a power of two")
        self.config = config
        self.num_parts = num_parts
        self._buffer_bytes = buffer_bytes
        self._buffered = 0
        self._paths = [
            folder / f"band-{band:03d}-part-{part:04d}" / f"{shard}.bin"
            for band in range(config.bands)
            for part in range(num_parts)
        ]
        self._files = ExitStack()
        self._temporary: list[Path] = []
        self._pending: list[list[npt.NDArray[np.void]]] = [[] for _ in self._paths]

    def __enter__(self) -> "BucketWriter":
        with ExitStack() as files:
            for path in self._paths:
                refuse_link(path.parent)
                path.parent.mkdir(parents=True, exist_ok=True)
                # Not left open: there may be more of them than a process may have.
                self._temporary.append(files.enter_context(atomic_path(path)))
            # Left first: what is still held in memory is written before the files get their names.
            files.push(self._flush_unless_failed)
            self._files = files.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.__exit__(kind, error, trace)

    def add(self, documents: npt.NDArray[np.uint64], signatures: npt.NDArray[np.uint64]) -> None:
        """Adds documents by their signatures ([n, bands * rows]); those without words have no candidates."""
        has_words = (signatures != NO_SHINGLE).any(axis=1)
        keys = band_keys(np.ascontiguousarray(signatures[has_words]), self.config.bands)
        for band in range(self.config.bands):
            records = np.empty(len(keys), dtype=RECORD)
            records["key"] = keys[:, band]
            records["document"] = documents[has_words]
            # Two shifts: one by 64 is not defined.
            parts = (keys[:, band] >> np.uint64(1)) >> np.uint64(63 - (self.num_parts.bit_length() - 1))
            for part in range(self.num_parts):
                self._pending[band * self.num_parts + part].append(records[parts == part])
        self._buffered += keys.size * RECORD.itemsize
        if self._buffered >= self._buffer_bytes:
            self._flush()

    def _flush_unless_failed(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()

    def _flush(self) -> None:
        for path, temporary, pending in zip(self._paths, self._temporary, self._pending, strict=True):
            with naming(path), os.fdopen(open_unfollowed(temporary, os.O_WRONLY | os.O_APPEND), "ab") as stream:
                for records in pending:
                    stream.write(records.tobytes())
            pending.clear()
        self._buffered = 0


def group_bucket(bucket: Path, similar: Similar | None = None) -> Edges:
    """Edges between the documents of one bucket that have a key in common.

    Without ``similar`` each document is joined to the smallest one with its key. With it, documents that are not
    similar to the smallest one are compared with the smallest of themselves, and so on.

    Args:
        bucket: a folder that `BucketWriter` made.
        similar: says of pairs [m, 2] which are similar (see `jaccard`).
    Returns:
        [m, 2] uint64, sorted, each once. Memory: about 60 bytes a record of the bucket.
    Raises:
        DataError: a file's size is no number of records.
    """
    records = np.concatenate([np.empty(0, dtype=RECORD), *map(_read_records, sorted(bucket.glob("*.bin")))])
    order = np.lexsort((records["document"], records["key"]))
    keys, documents = records["key"][order], records["document"][order]
    edges = [np.empty((0, 2), dtype=np.uint64)]
    while len(keys):
        is_first = np.concatenate([[True], keys[1:] != keys[:-1]])
        leaders = documents[is_first][np.cumsum(is_first) - 1]
        pairs = np.stack([leaders, documents], axis=1)
        # A document may be listed twice, if it was added twice.
        rest = pairs[:, 0] != pairs[:, 1]
        accepted = rest.copy()
        if similar is not None and rest.any():
            accepted[rest] = similar(pairs[rest])
        edges.append(pairs[accepted])
        left = rest & ~accepted
        keys, documents = keys[left], documents[left]
    return np.unique(np.concatenate(edges), axis=0)


def _read_records(path: Path) -> npt.NDArray[np.void]:
    size = path.stat().st_size
    if size % RECORD.itemsize:
        raise DataError(f"{path}: {size} bytes are no number of {RECORD.itemsize}-byte records; write the shard again")
    return np.fromfile(path, dtype=RECORD)


def write_edges(path: Path, edges: Edges) -> None:
    """Writes edges as .npy, atomically."""
    with atomic_output(path) as stream:
        np.save(stream, edges, allow_pickle=False)


def read_edges(paths: Iterable[Path]) -> list[Edges]:
    """The edges of several files, mapped into memory.

    Raises:
        DataError: a file is not an array of edges, or there are more than may be open.
    """
    paths = list(paths)
    allow_open_files(len(paths), f"{len(paths)} files of edges")
    edges = []
    for path in paths:
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            raise DataError(f"{path}: not a file of edges ({error}); group its bucket again") from error
        if array.dtype != np.uint64 or array.ndim != 2 or array.shape[1] != 2:
            raise DataError(f"{path}: holds {array.dtype} {array.shape}, not edges; group its bucket again")
        edges.append(array)
    return edges
