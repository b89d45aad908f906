"""The exact check of near duplicates: shingle sets of all candidates, each bucket grouped again by true similarity.

A band key in common is a candidate, found by chance now and then. With `min_jaccard` only pairs whose shingle sets are
at least that similar are joined, so every link of a cluster is; which pairs are asked depends on the documents alone.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_tools.dedup.buckets import Edges, group_bucket, read_edges, write_edges
from data_tools.dedup.components import distinct_documents
from data_tools.dedup.minhash import MinHashConfig, shingle_sets
from data_tools.dedup.shingle_sets import ShingleSets, set_files, write_shingle_sets
from data_tools.engine.document import batches, document_numbers, read_documents
from data_tools.engine.input_list import read_input_list, write_input_list
from data_tools.engine.runner import Runner
from data_tools.engine.task import Manifest, Task, TaskResult
from data_tools.io.atomic_file import atomic_output
from data_tools.io.file_range import FileRange

_CANDIDATES = "candidates.npy"


def checked_edges(
    runner: Runner,
    folder: Path,
    shards: Sequence[FileRange],
    grouped: Sequence[Manifest],
    bands: FileRange,
    num_words: int,
    min_jaccard: float,
) -> list[Manifest]:
    """Three phases: candidates of all buckets, their shingle sets part by part, each bucket grouped by similarity.

    Args:
        folder: of the stage.
        shards: the documents.
        grouped: what `fuzzy_group` found, a bucket each.
        bands: the list of the files of all shards, from which ``grouped`` was made, bucket by bucket.
        num_words: words in a shingle.
        min_jaccard: least similarity of a pair that is joined.
    Returns:
        manifests with NAME.npy, as ``grouped``, without the pairs that are not similar enough.
    """
    edge_files = [one.output(f"{one.name}.npy") for one in grouped]
    work = folder / "shingles"
    task = Task(
        operation="fuzzy_candidates",
        folder=str(folder / "candidates"),
        name="all",
        options={},
        inputs=(write_input_list(folder / "lists" / "unchecked.json", edge_files),),
        read_bytes=sum(one.size_bytes for one in edge_files),
    )
    (candidates,) = runner.run(folder / "candidates", [task])
    written = runner.run(
        work,
        [
            Task(
                operation="fuzzy_shingles",
                folder=str(work),
                name=f"part-{number:06d}",
                options={"num_words": num_words},
                inputs=(shard, candidates.output(_CANDIDATES)),
                read_bytes=shard.size_bytes,
            )
            for number, shard in enumerate(shards)
        ],
    )
    files = [part.output(path.name) for part in written for path in set_files(work, part.name)]
    sets = write_input_list(folder / "lists" / "shingles.json", files)
    # Of its records all, of the sets those that its pairs name: about so much.
    read_bytes = sum(one.size_bytes for one in (*files, *read_input_list(bands))) // len(grouped)
    checks = [
        Task(
            operation="fuzzy_check",
            folder=str(folder / "checked"),
            name=one.name,
            options={"min_jaccard": min_jaccard, "bucket": bucket},
            inputs=(bands, sets),
            read_bytes=read_bytes,
        )
        for bucket, one in enumerate(grouped)
    ]
    return runner.run(folder / "checked", checks)


def find_candidates(task: Task) -> TaskResult:
    """The operation `fuzzy_candidates`: the documents that share a band key with another."""
    found = distinct_documents(read_edges(Path(one.path) for one in read_input_list(task.inputs[0])))
    with atomic_output(Path(task.folder, _CANDIDATES), sync=False) as stream:
        np.save(stream, found, allow_pickle=False)
    return TaskResult(outputs=[_CANDIDATES], values={"candidates": len(found)})


def write_candidates(task: Task) -> TaskResult:
    """The operation `fuzzy_shingles`: the shingle sets of one shard's candidates."""
    candidates = np.load(task.inputs[1].path, mmap_mode="r", allow_pickle=False)
    config = MinHashConfig(num_words=task.options["num_words"])

    def sets() -> Iterator[tuple[npt.NDArray[np.uint64], list[npt.NDArray[np.uint64]]]]:
        for batch in batches(read_documents(Path(task.inputs[0].path))):
            numbers = document_numbers(batch)
            places = np.searchsorted(candidates, numbers).clip(max=len(candidates) - 1)
            wanted = np.flatnonzero(candidates[places] == numbers)
            yield numbers[wanted], shingle_sets([batch[row].text for row in wanted], config)

    folder = Path(task.folder)
    count = write_shingle_sets(folder, task.name, sets() if len(candidates) else ())
    return TaskResult(outputs=[path.name for path in set_files(folder, task.name)], values={"sets": count})


def check_bucket(task: Task) -> TaskResult:
    """The operation `fuzzy_check`: the pairs of one bucket that are similar enough, to NAME.npy."""
    files = [Path(one.path) for one in read_input_list(task.inputs[1])]
    sets = ShingleSets(list(zip(files[::2], files[1::2], strict=True)))
    least = task.options["min_jaccard"]
    num_compared, num_apart = 0, 0

    def similar(pairs: Edges) -> npt.NDArray[np.bool_]:
        nonlocal num_compared, num_apart
        found = sets.similarities(pairs) >= least
        num_compared += len(found)
        num_apart += int((~found).sum())
        return found

    bands = [Path(one.path) for one in read_input_list(task.inputs[0])]
    edges = group_bucket(bands, task.options["bucket"], similar)
    write_edges(Path(task.folder, f"{task.name}.npy"), edges)
    values = {"compared": num_compared, "apart": num_apart, "edges": len(edges)}
    return TaskResult(outputs=[f"{task.name}.npy"], values=values)
