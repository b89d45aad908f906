"""The shuffle by band: a file of each shard with the records of all buckets, grouped one bucket at a time.

Document numbers must not depend on how the input is split into shards (file number and record number, say); then
neither do the edges, up to their order.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from data_tools.dedup.minhash import DEFAULT, NO_SHINGLE, MinHashConfig, band_keys
from data_tools.dedup.sliced_file import SliceWriter, read_slice, slice_numbers
from data_tools.errors import DataError
from data_tools.io.atomic_file import atomic_output
from data_tools.io.open_files import allow_open_files

RECORD = np.dtype([("key", "<u8"), ("document", "<u8")])

Edges = npt.NDArray[np.uint64]
"""[m, 2] document numbers, the smaller one first."""
Similar = Callable[[Edges], npt.NDArray[np.bool_]]


class BucketWriter:
    """Writes (band key, document) of one shard, bucket by bucket, to `FOLDER/SHARD.bands`.

    All records of one key come to one bucket: bucket band * num_parts + part has those of a band whose keys begin with
    the bits of the part. The file appears when the block ends well; if it ends by an exception it does not.

    Args:
        folder: shared by all shards.
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
        self._writer = SliceWriter(bands_file(folder, shard), config.bands * num_parts, RECORD, buffer_bytes)

    def __enter__(self) -> "BucketWriter":
        self._writer.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.__exit__(kind, error, trace)

    def add(self, documents: npt.NDArray[np.uint64], signatures: npt.NDArray[np.uint64]) -> None:
        """Adds documents by their signatures ([n, bands * rows]); those without words have no candidates."""
        has_words = (signatures != NO_SHINGLE).any(axis=1)
        keys = band_keys(np.ascontiguousarray(signatures[has_words]), self.config.bands)
        records = np.empty(keys.shape, dtype=RECORD)
        records["key"] = keys
        records["document"] = documents[has_words, np.newaxis]
        buckets = slice_numbers(keys, self.num_parts) + self.num_parts * np.arange(self.config.bands)
        self._writer.add(buckets.ravel(), records.ravel())


def bands_file(folder: Path, shard: str) -> Path:
    """Where `BucketWriter` writes the records of a shard."""
    return folder / f"{shard}.bands"


def group_bucket(files: Sequence[Path], bucket: int, similar: Similar | None = None) -> Edges:
    """Edges between the documents of one bucket that have a key in common.

    Without ``similar`` each document is joined to the smallest one with its key. With it, documents that are not
    similar to the smallest one are compared with the smallest of themselves, and so on.

    Args:
        files: of all shards (`bands_file`).
        bucket: number of the bucket.
        similar: says of pairs [m, 2] which are similar (see `jaccard`).
    Returns:
        [m, 2] uint64, sorted, each once. Memory: about 60 bytes a record of the bucket.
    Raises:
        DataError: a file is damaged.
    """
    found = (records for path in files for records in read_slice(path, RECORD, bucket))
    records = np.concatenate([np.empty(0, dtype=RECORD), *found])
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
