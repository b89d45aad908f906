"""Near duplicates across the whole corpus: MinHash signatures, a shuffle by band, groups, connected components.

Documents are numbered by a hash of their text, so the survivor of a cluster, its smallest number, depends neither on
the order of the input nor on how it is cut. Equal texts would have equal numbers: `exact_dedup` comes first. The
survivor's `cluster_size` adds up those of its cluster.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_tools.dedup.buckets import BucketWriter, bands_file, group_bucket, write_edges
from data_tools.dedup.minhash import MinHashConfig, signatures
from data_tools.engine.document import (
    CLUSTER_SIZE,
    Document,
    Drop,
    ShardWriter,
    batches,
    cluster_size,
    document_numbers,
    read_documents,
    shortened,
)
from data_tools.engine.input_list import read_input_list, write_input_list
from data_tools.engine.part_tasks import part_tasks
from data_tools.engine.planning import group_neighbours
from data_tools.engine.runner import Runner
from data_tools.engine.task import Manifest, Task, TaskResult, documents_file
from data_tools.io.file_range import FileRange
from data_tools.settings.records import Count, Seed64, Share, record
from data_tools.stages.cluster_tasks import REMOVED, SIZES, join_pairs
from data_tools.stages.jaccard_tasks import checked_edges

# Shards that are signed each for itself; every bucket reads the files of all of them.
_MOST_SIGNED = 512


@record
class FuzzyDedupStage:
    """Options of the stage `fuzzy_dedup`."""

    bands: Count = 14
    """A pair with Jaccard similarity s is found with probability 1 - (1 - s^rows)^bands."""
    rows: Count = 8
    """A pair with Jaccard similarity s is found with probability 1 - (1 - s^rows)^bands."""
    num_words: Count = 5
    """Words in a shingle; a CJK character is a word."""
    seed: Seed64 = 1
    """Of the hash functions."""
    bucket_documents: Count = 8_000_000
    """Documents grouped or joined at once by a worker; about 100 bytes of memory for each."""
    min_jaccard: Share = 0.0
    """Pairs that are found are joined only if their shingle sets are at least this similar; 0 joins all."""

    def run(self, runner: Runner, folder: Path, inputs: Sequence[Manifest]) -> list[Manifest]:
        """Four phases: signatures of each part, groups of each bucket, clusters of all, each part rewritten.

        With `min_jaccard` those of `jaccard_tasks` come before the clusters; `cluster_tasks` says how these are found.
        """
        needed = -(-sum(part.records_out for part in inputs) // self.bucket_documents)
        options = {
            "bands": self.bands,
            "rows": self.rows,
            "num_words": self.num_words,
            "seed": self.seed,
            "num_parts": 1 << max(0, needed - 1).bit_length(),
        }
        shards = [part.output(documents_file(part.name)) for part in inputs]
        buckets = folder / "buckets"
        counts = [part.records_out for part in inputs]
        sign = [
            Task(
                operation="fuzzy_sign",
                folder=str(buckets),
                name=f"part-{number:06d}",
                options=options,
                inputs=tuple(shards[shard] for shard in group),
                documents=sum(counts[shard] for shard in group),
            )
            for number, group in enumerate(group_neighbours(counts, _MOST_SIGNED, sum(counts) // _MOST_SIGNED))
        ]
        signed = runner.run(buckets, sign)
        clusters = self._clusters(runner, folder, shards, signed, options["num_parts"])
        found = (clusters.output(REMOVED), clusters.output(SIZES))
        shown = {"largest": clusters.values["largest"]}
        return runner.run(folder, part_tasks("fuzzy_apply", folder, inputs, shown, shared=found))

    def _clusters(
        self, runner: Runner, folder: Path, shards: Sequence[FileRange], signed: Sequence[Manifest], num_parts: int
    ) -> Manifest:
        bands = [part.output(bands_file(Path(), part.name).name) for part in signed]
        bands_list = write_input_list(folder / "lists" / "bands.json", bands)
        num_buckets = self.bands * num_parts
        bucket_bytes = sum(one.size_bytes for one in bands) // num_buckets
        tasks = [
            Task(
                operation="fuzzy_group",
                folder=str(folder / "edges"),
                name=f"band-{bucket // num_parts:03d}-part-{bucket % num_parts:04d}",
                options={"bucket": bucket},
                inputs=(bands_list,),
                read_bytes=bucket_bytes,
            )
            for bucket in range(num_buckets)
        ]
        grouped = runner.run(folder / "edges", tasks)
        if self.min_jaccard:
            grouped = checked_edges(runner, folder, shards, grouped, bands_list, self.num_words, self.min_jaccard)
        copies = [one.output(_copies(one.name)) for one in signed]
        of_documents = sum(part.records_out for part in signed)
        return join_pairs(runner, folder, grouped, copies, self.bucket_documents, of_documents)


def _copies(part: str) -> str:
    return f"{part}.copies.npy"


def sign_part(task: Task) -> TaskResult:
    """The operation `fuzzy_sign`: band keys of some shards, by bucket, to NAME.bands; cluster sizes above 1."""
    options = task.options
    config = MinHashConfig(
        bands=options["bands"], rows=options["rows"], num_words=options["num_words"], seed=options["seed"]
    )
    folder = Path(task.folder)
    count = 0
    copies = [np.empty((0, 2), dtype=np.uint64)]
    with BucketWriter(folder, task.name, config, options["num_parts"]) as writer:
        for batch in batches(chain.from_iterable(read_documents(Path(one.path)) for one in task.inputs)):
            texts = [document.text for document in batch]
            numbers = document_numbers(batch)
            writer.add(numbers, signatures(texts, config))
            sizes = np.array([cluster_size(document) for document in batch], dtype=np.uint64)
            copies.append(np.stack([numbers, sizes], axis=1)[sizes > 1])
            count += len(batch)
    sorted_copies = np.concatenate(copies)
    write_edges(folder / _copies(task.name), sorted_copies[np.argsort(sorted_copies[:, 0], kind="stable")])
    outputs = [bands_file(folder, task.name).name, _copies(task.name)]
    return TaskResult(outputs=outputs, records_in=count, records_out=count)


def group_band(task: Task) -> TaskResult:
    """The operation `fuzzy_group`: pairs of documents that share a band key, to NAME.npy."""
    files = [Path(one.path) for one in read_input_list(task.inputs[0])]
    edges = group_bucket(files, task.options["bucket"])
    write_edges(Path(task.folder, f"{task.name}.npy"), edges)
    return TaskResult(outputs=[f"{task.name}.npy"], values={"edges": len(edges)})


def apply_clusters(task: Task) -> TaskResult:
    """The operation `fuzzy_apply`: one shard without its near duplicates; those of the largest clusters are shown."""
    shown = _ShownClusters(task.options["largest"])
    removed, clusters = (np.load(one.path, mmap_mode="r", allow_pickle=False) for one in task.inputs[1:])
    survivors = clusters[:, 0]
    records_in = 0
    with ShardWriter(Path(task.folder), task.name) as writer:
        for batch in batches(read_documents(Path(task.inputs[0].path))):
            records_in += len(batch)
            numbers = document_numbers(batch)
            removed_places = np.searchsorted(removed, numbers).tolist()
            survivor_places = _places(survivors, numbers).tolist()
            for document, number, lost, kept in zip(batch, numbers, removed_places, survivor_places, strict=True):
                if lost < len(removed) and removed[lost] == number:
                    shown.look_at(int(number), document, is_kept=False)
                    writer.drop(document, Drop("near_duplicate"))
                    continue
                if kept < len(survivors) and survivors[kept] == number:
                    shown.look_at(int(number), document, is_kept=True)
                    document.metadata[CLUSTER_SIZE] = int(clusters[kept, 1])
                writer.keep(document)
    return writer.result(records_in, values={"clusters": shown.found})


def _places(column: npt.NDArray[np.uint64], numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """What `np.searchsorted` gives, which would copy a column of a table: the survivors of the whole corpus.

    Args:
        column: ascending.
        numbers: [n], looked up.
    """
    low, high = np.zeros(len(numbers), dtype=np.int64), np.full(len(numbers), len(column), dtype=np.int64)
    while (is_open := low < high).any():
        middle = (low + high) // 2
        is_less = column[np.minimum(middle, len(column) - 1)] < numbers
        low = np.where(is_open & is_less, middle + 1, low)
        high = np.where(is_open & ~is_less, middle, high)
    return low


class _ShownClusters:
    """Collects documents of the largest clusters as examples.

    Attributes:
        found: survivor -> size of its cluster, and the documents of it that came along.
    """

    def __init__(self, largest: Sequence[Mapping[str, Any]]) -> None:
        self._clusters = {
            number: cluster for cluster in largest for number in (cluster["survivor"], *cluster["members"])
        }
        self.found: dict[str, dict[str, Any]] = {}

    def look_at(self, number: int, document: Document, *, is_kept: bool) -> None:
        cluster = self._clusters.get(number)
        if cluster is not None:
            entry = {"size": cluster["size"], "documents": []}
            documents = self.found.setdefault(str(cluster["survivor"]), entry)["documents"]
            documents.append({**shortened(document), "is_kept": is_kept})
