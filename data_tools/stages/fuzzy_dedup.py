"""Near duplicates across the whole corpus: MinHash signatures, a shuffle by band, groups, connected components.

Documents are numbered by a hash of their text, so the survivor of a cluster, its smallest number, depends neither on
the order of the input nor on how it is cut. Equal texts would have equal numbers: `exact_dedup` comes first. The
survivor's `cluster_size` adds up those of its cluster.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_tools.dedup.buckets import BucketWriter, group_bucket, read_edges, write_edges
from data_tools.dedup.components import components
from data_tools.dedup.minhash import MinHashConfig, signatures
from data_tools.engine.document import (
    CLUSTER_SIZE,
    Drop,
    ShardWriter,
    batches,
    cluster_size,
    document_numbers,
    read_documents,
)
from data_tools.engine.input_list import read_input_list, write_input_list
from data_tools.engine.own_files import sweep_bucket
from data_tools.engine.part_tasks import part_tasks
from data_tools.engine.runner import Runner
from data_tools.engine.task import Manifest, Task, TaskResult
from data_tools.io.atomic_file import atomic_output
from data_tools.io.file_range import FileRange
from data_tools.settings.records import Count, Seed64, Share, record
from data_tools.stages.jaccard_tasks import checked_edges

_REMOVED = "removed.npy"
_SIZES = "sizes.npy"


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
    """Documents grouped at once; 60 bytes of memory for each."""
    min_jaccard: Share = 0.0
    """Pairs that are found are joined only if their shingle sets are at least this similar; 0 joins all."""

    def run(self, runner: Runner, folder: Path, inputs: Sequence[Manifest]) -> list[Manifest]:
        """Four phases: signatures of each part, groups of each bucket, components of all, each part rewritten.

        With `min_jaccard` those of `jaccard_tasks` come before the components.
        """
        needed = -(-sum(part.records_out for part in inputs) // self.bucket_documents)
        options = {
            "bands": self.bands,
            "rows": self.rows,
            "num_words": self.num_words,
            "seed": self.seed,
            "num_parts": 1 << max(0, needed - 1).bit_length(),
        }
        shards = [part.output(f"{part.name}.jsonl.zst") for part in inputs]
        buckets = folder / "buckets"
        signed = runner.run(buckets, part_tasks("fuzzy_sign", buckets, inputs, options))
        clusters = self._clusters(runner, folder, shards, signed)
        found = (clusters.output(_REMOVED), clusters.output(_SIZES))
        return runner.run(folder, part_tasks("fuzzy_apply", folder, inputs, shared=found))

    def _clusters(
        self, runner: Runner, folder: Path, shards: Sequence[FileRange], signed: Sequence[Manifest]
    ) -> Manifest:
        names = sorted({str(Path(name).parent) for part in signed for name in part.outputs if name.endswith(".bin")})
        tasks = []
        for name in names:
            files = [part.output(f"{name}/{part.name}.bin") for part in signed]
            sweep_bucket(folder / "buckets" / name, {part.name for part in signed})
            files_list = write_input_list(folder / "lists" / f"{name}.json", files)
            tasks.append(
                Task(
                    operation="fuzzy_group",
                    folder=str(folder / "edges"),
                    name=name,
                    options={},
                    inputs=(files_list,),
                )
            )
        grouped = runner.run(folder / "edges", tasks)
        if self.min_jaccard:
            buckets = [task.inputs[0] for task in tasks]
            grouped = checked_edges(runner, folder, shards, grouped, buckets, self.num_words, self.min_jaccard)
        edges = write_input_list(folder / "lists" / "edges.json", [one.output(f"{one.name}.npy") for one in grouped])
        copies = write_input_list(folder / "lists" / "copies.json", [one.output(_copies(one.name)) for one in signed])
        joined = Task(
            operation="fuzzy_join", folder=str(folder / "clusters"), name="clusters", options={}, inputs=(edges, copies)
        )
        (clusters,) = runner.run(folder / "clusters", [joined])
        return clusters


def _copies(part: str) -> str:
    return f"{part}.copies.npy"


def sign_part(task: Task) -> TaskResult:
    """The operation `fuzzy_sign`: band keys of one shard, sent to the buckets; cluster sizes above 1."""
    options = task.options
    config = MinHashConfig(
        bands=options["bands"], rows=options["rows"], num_words=options["num_words"], seed=options["seed"]
    )
    folder = Path(task.folder)
    count = 0
    copies = [np.empty((0, 2), dtype=np.uint64)]
    with BucketWriter(folder, task.name, config, options["num_parts"]) as writer:
        for batch in batches(read_documents(Path(task.inputs[0].path))):
            texts = [document.text for document in batch]
            numbers = document_numbers(batch)
            writer.add(numbers, signatures(texts, config))
            sizes = np.array([cluster_size(document) for document in batch], dtype=np.uint64)
            copies.append(np.stack([numbers, sizes], axis=1)[sizes > 1])
            count += len(batch)
    write_edges(folder / _copies(task.name), np.concatenate(copies))
    outputs = [
        f"band-{band:03d}-part-{part:04d}/{task.name}.bin"
        for band in range(config.bands)
        for part in range(options["num_parts"])
    ]
    return TaskResult(outputs=[*outputs, _copies(task.name)], records_in=count, records_out=count)


def group_band(task: Task) -> TaskResult:
    """The operation `fuzzy_group`: pairs of documents that share a band key, to NAME.npy."""
    files = read_input_list(task.inputs[0])
    edges = group_bucket(Path(files[0].path).parent)
    write_edges(Path(task.folder, f"{task.name}.npy"), edges)
    return TaskResult(outputs=[f"{task.name}.npy"], values={"edges": len(edges)})


def join_clusters(task: Task) -> TaskResult:
    """The operation `fuzzy_join`: the documents that do not survive, and the survivors with the sizes of clusters."""
    edges, copies = (read_edges(Path(one.path) for one in read_input_list(one)) for one in task.inputs)
    found = components(edges)
    survivors, sizes = found.cluster_sizes(np.concatenate([np.empty((0, 2), dtype=np.uint64), *copies]))
    clusters = np.stack([survivors, sizes.astype(np.uint64)], axis=1)
    for name, array in ((_REMOVED, found.removed), (_SIZES, clusters)):
        with atomic_output(Path(task.folder, name), sync=False) as stream:
            np.save(stream, array, allow_pickle=False)
    return TaskResult(outputs=[_REMOVED, _SIZES], values={"clusters": len(clusters), "removed": len(found.removed)})


def apply_clusters(task: Task) -> TaskResult:
    """The operation `fuzzy_apply`: one shard without its near duplicates."""
    removed, clusters = (np.load(one.path, mmap_mode="r", allow_pickle=False) for one in task.inputs[1:])
    survivors = clusters[:, 0]
    records_in = 0
    with ShardWriter(Path(task.folder), task.name) as writer:
        for batch in batches(read_documents(Path(task.inputs[0].path))):
            records_in += len(batch)
            numbers = document_numbers(batch)
            removed_places = np.searchsorted(removed, numbers).tolist()
            survivor_places = np.searchsorted(survivors, numbers).tolist()
            for document, number, lost, kept in zip(batch, numbers, removed_places, survivor_places, strict=True):
                if lost < len(removed) and removed[lost] == number:
                    writer.drop(document, Drop("near_duplicate"))
                    continue
                if kept < len(survivors) and survivors[kept] == number:
                    document.metadata[CLUSTER_SIZE] = int(clusters[kept, 1])
                writer.keep(document)
    return writer.result(records_in)
