"""Exact duplicates across the whole corpus: hash every part, group by ranges of hashes, drop all but one.

Texts are equal if they agree after NFKC, case folding and collapsing white space. Of equal texts the one whose own
bytes hash lowest stays, of texts with the same bytes the document whose identity does, so the documents that survive
depend neither on the order of the input nor on how it is cut. Its `cluster_size` says for how many documents it stands.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_tools.engine.document import CLUSTER_SIZE, Drop, ShardWriter, batches, cluster_size, read_documents
from data_tools.engine.input_list import read_input_list, write_input_list
from data_tools.engine.part_tasks import part_tasks
from data_tools.engine.runner import Runner
from data_tools.engine.task import Manifest, Task, TaskResult, documents_file
from data_tools.io.atomic_file import atomic_output
from data_tools.settings.records import Count, record
from data_tools.text.normalized import normalized_hashes

# What is kept of a document: two hashes of its normalised text, two that choose among equal ones, its place and size.
HASH_ENTRY = np.dtype(
    [("first", "<u8"), ("second", "<u8"), ("rank", "<u8"), ("identity", "<u8"), ("row", "<u8"), ("size", "<u8")]
)
_DUPLICATE = np.dtype([("part", "<u4"), ("row", "<u8"), ("survivor_part", "<u4"), ("survivor_row", "<u8")])
_CLUSTER = np.dtype([("part", "<u4"), ("row", "<u8"), ("size", "<u8")])
_BUCKET_DOCUMENTS = 4_000_000


@record
class ExactDedupStage:
    """Options of the stage `exact_dedup`."""

    bucket_documents: Count = _BUCKET_DOCUMENTS
    """Documents grouped at once; about 150 bytes of memory for each."""

    def run(self, runner: Runner, folder: Path, inputs: Sequence[Manifest]) -> list[Manifest]:
        """Three phases: hash each part, group each range of hashes, rewrite each part."""
        hashed = runner.run(folder / "hashes", part_tasks("exact_dedup_hash", folder / "hashes", inputs))
        num_buckets = max(1, -(-sum(part.records_out for part in inputs) // self.bucket_documents))
        hash_files = [one.output(f"{one.name}.hashes") for one in hashed]
        hash_list = write_input_list(folder / "lists" / "hashes.json", hash_files)
        groups = [
            Task(
                operation="exact_dedup_group",
                folder=str(folder / "groups"),
                name=f"bucket-{number:06d}",
                options={"bucket": number, "num_buckets": num_buckets},
                inputs=(hash_list,),
                read_bytes=sum(one.size_bytes for one in hash_files) // num_buckets,
            )
            for number in range(num_buckets)
        ]
        grouped = runner.run(folder / "groups", groups)
        found = [
            write_input_list(folder / "lists" / f"{kind}.json", [one.output(f"{one.name}.{kind}") for one in grouped])
            for kind in ("duplicates", "clusters")
        ]
        applied = [
            Task(
                operation="exact_dedup_apply",
                folder=str(folder),
                name=part.name,
                options={"part": number},
                inputs=(part.output(documents_file(part.name)), *found),
                documents=part.records_out,
            )
            for number, part in enumerate(inputs)
        ]
        return runner.run(folder, applied)


def hash_part(task: Task) -> TaskResult:
    """The operation `exact_dedup_hash`: hashes of one shard, sorted, to NAME.hashes."""
    arrays = [np.empty(0, dtype=HASH_ENTRY)]
    num_rows = 0
    for batch in batches(read_documents(Path(task.inputs[0].path))):
        entries = np.empty(len(batch), dtype=HASH_ENTRY)
        hashes = normalized_hashes([document.text for document in batch])
        entries["first"], entries["second"] = hashes[:, 0], hashes[:, 1]
        entries["rank"] = [_short_hash(document.text) for document in batch]
        entries["identity"] = [_short_hash(document.id) for document in batch]
        entries["row"] = np.arange(num_rows, num_rows + len(batch))
        entries["size"] = [cluster_size(document) for document in batch]
        arrays.append(entries)
        num_rows += len(batch)
    array = np.sort(np.concatenate(arrays), order=("first", "second", "rank", "identity", "row"))
    name = f"{task.name}.hashes"
    with atomic_output(Path(task.folder, name), sync=False) as stream:
        stream.write(array.tobytes())
    return TaskResult(outputs=[name], records_in=len(array), records_out=len(array))


def _short_hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little")


def group_bucket(task: Task) -> TaskResult:
    """The operation `exact_dedup_group`: survivors of one range of hashes.

    All but them go to NAME.duplicates, and those that stand for others to NAME.clusters.
    """
    bucket, num_buckets = task.options["bucket"], task.options["num_buckets"]
    low, high = bucket * 2**64 // num_buckets, (bucket + 1) * 2**64 // num_buckets
    slices, parts = [], []
    for number, one in enumerate(read_input_list(task.inputs[0])):
        entries = _slice(Path(one.path), low, high)
        slices.append(entries)
        parts.append(np.full(len(entries), number, dtype=np.uint32))
    entries, part = np.concatenate(slices), np.concatenate(parts)
    del slices, parts  # As large as all of them.
    keys = ("identity", "rank", "second", "first")
    order = np.lexsort((entries["row"], part, *(entries[key] for key in keys)))
    entries, part = entries[order], part[order]
    new = np.ones(len(entries), dtype=bool)
    new[1:] = (entries["first"][1:] != entries["first"][:-1]) | (entries["second"][1:] != entries["second"][:-1])
    survivor = np.flatnonzero(new)[np.cumsum(new) - 1]
    found = np.empty(int((~new).sum()), dtype=_DUPLICATE)
    found["part"], found["row"] = part[~new], entries["row"][~new]
    found["survivor_part"], found["survivor_row"] = part[survivor[~new]], entries["row"][survivor[~new]]
    starts = np.flatnonzero(new)
    clusters = np.empty(len(starts), dtype=_CLUSTER)
    clusters["part"], clusters["row"] = part[starts], entries["row"][starts]
    clusters["size"] = np.add.reduceat(entries["size"], starts) if len(starts) else 0
    clusters = clusters[np.diff(np.append(starts, len(entries))) > 1]
    names = [f"{task.name}.duplicates", f"{task.name}.clusters"]
    for name, array in zip(names, (found, clusters), strict=True):
        with atomic_output(Path(task.folder, name), sync=False) as stream:
            stream.write(np.sort(array, order=("part", "row")).tobytes())
    return TaskResult(outputs=names, values={"duplicates": len(found), "clusters": len(clusters)})


def _slice(path: Path, low: int, high: int) -> npt.NDArray[np.void]:
    if path.stat().st_size == 0:
        return np.empty(0, dtype=HASH_ENTRY)
    entries = np.memmap(path, dtype=HASH_ENTRY, mode="r")
    first = int(np.searchsorted(entries["first"], np.uint64(low)))
    last = len(entries) if high == 2**64 else int(np.searchsorted(entries["first"], np.uint64(high)))
    return np.array(entries[first:last])


def apply_part(task: Task) -> TaskResult:
    """The operation `exact_dedup_apply`: one shard without its duplicates."""
    number = task.options["part"]
    survivors = {}
    for one in read_input_list(task.inputs[1]):
        for duplicate in _rows_of(Path(one.path), _DUPLICATE, number):
            survivors[int(duplicate["row"])] = (int(duplicate["survivor_part"]), int(duplicate["survivor_row"]))
    sizes = {
        int(cluster["row"]): int(cluster["size"])
        for one in read_input_list(task.inputs[2])
        for cluster in _rows_of(Path(one.path), _CLUSTER, number)
    }
    records_in = 0
    with ShardWriter(Path(task.folder), task.name) as writer:
        for row, document in enumerate(read_documents(Path(task.inputs[0].path))):
            records_in += 1
            survivor = survivors.get(row)
            if survivor is not None:
                writer.drop(document, Drop("exact_duplicate", f"of document {survivor[1]} of part {survivor[0]}"))
                continue
            if row in sizes:
                document.metadata[CLUSTER_SIZE] = sizes[row]
            writer.keep(document)
    return writer.result(records_in)


def _rows_of(path: Path, dtype: "np.dtype[np.void]", part: int) -> npt.NDArray[np.void]:
    if path.stat().st_size == 0:
        return np.empty(0, dtype=dtype)
    found = np.memmap(path, dtype=dtype, mode="r")
    first = int(np.searchsorted(found["part"], part, side="left"))
    last = int(np.searchsorted(found["part"], part, side="right"))
    return np.array(found[first:last])
