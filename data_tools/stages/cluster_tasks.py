"""Clusters of near duplicates from the pairs of all buckets, in memory that the stage bounds.

Pairs are contracted, some at a time, to stars around the smallest document of each. If one task holds all of them that
is all; else the rounds of `cluster_rounds` follow, in which a task has the documents of one slice of the numbers. Then
the documents that do not survive are counted for those that do.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from data_tools.dedup.buckets import read_edges
from data_tools.dedup.sliced_file import SliceWriter, batched, read_slice, slice_numbers
from data_tools.dedup.stars import EDGE, LargeStar, SmallStar, contracted, edge_records
from data_tools.engine.input_list import read_input_list, write_input_list
from data_tools.engine.runner import Runner
from data_tools.engine.task import Manifest, Task, TaskResult
from data_tools.io.atomic_file import atomic_output
from data_tools.io.file_range import FileRange
from data_tools.stages.cluster_rounds import CONTRACTED, over_slices, stars_of_all

REMOVED = "removed.npy"
SIZES = "sizes.npy"
# So many slices at most: each task writes records of all of them.
_MOST_SLICES = 1024
_MOST_BUFFER_BYTES = 64 << 20
# The largest clusters are shown in reports, each with its survivor and a few of the others.
_SHOWN_CLUSTERS, _SHOWN_MEMBERS = 5, 3
# Each slice names members of so many clusters, because it does not know which ones are the largest of all.
_NAMED_CLUSTERS = 100
_COUNT = np.dtype("<u8")
_WEIGHT = np.dtype([("node", "<u8"), ("weight", "<u8")])


def join_pairs(
    runner: Runner,
    folder: Path,
    grouped: Sequence[Manifest],
    copies: Sequence[FileRange],
    num_documents: int,
    of_documents: int,
) -> Manifest:
    """The clusters of all pairs.

    Args:
        runner: does the tasks.
        folder: of the stage.
        grouped: manifests with NAME.npy, pairs of documents, and how many in the value `edges`.
        copies: files of documents that stand for several ([k, 2] uint64, by document), and for how many.
        num_documents: that a task may hold, about 100 bytes each.
        of_documents: at least as many as the pairs name.
    Returns:
        a manifest with `REMOVED`, the documents that do not survive, `SIZES`, those that do with the sizes of their
        clusters, and the value `largest`: `survivor`, `size` and some `members` of the largest clusters.
    """
    num_edges = sum(one.values["edges"] for one in grouped)
    needed = -(-min(2 * num_edges, of_documents) // num_documents)
    num_slices = min(1 << max(0, needed - 1).bit_length(), _MOST_SLICES)
    options: dict[str, int | str] = {"num_slices": num_slices, "num_documents": num_documents}
    stars = stars_of_all(runner, folder, _contract_tasks(folder / CONTRACTED, grouped, options), options)
    copies_list = write_input_list(folder / "lists" / "copies.json", copies)
    weighed = over_slices(runner, "fuzzy_weigh", folder / "weights", stars, options, copies_list)
    sized = over_slices(runner, "fuzzy_size", folder / "sizes", weighed, options, copies_list, suffix="weights")
    parts = {
        name: [one.output(f"{one.name}.{name}") for one in some]
        for name, some in (("removed", weighed), ("sizes", sized))
    }
    joined = Task(
        operation="fuzzy_join",
        folder=str(folder / "clusters"),
        name="clusters",
        options={"largest": _largest(weighed, sized)},
        inputs=tuple(write_input_list(folder / "lists" / f"{name}.json", files) for name, files in parts.items()),
        read_bytes=sum(file.size_bytes for files in parts.values() for file in files),
    )
    (clusters,) = runner.run(folder / "clusters", [joined])
    return clusters


def _largest(weighed: Sequence[Manifest], sized: Sequence[Manifest]) -> list[dict[str, Any]]:
    """The largest of all clusters, from the largest of each slice."""
    members: dict[str, list[int]] = {}
    for one in weighed:
        for survivor, some in one.values["members"].items():
            members.setdefault(survivor, []).extend(some)
    found = sorted((pair for one in sized for pair in one.values["largest"]), key=lambda pair: (-pair[1], pair[0]))
    return [
        {"survivor": survivor, "size": size, "members": members.get(str(survivor), [])[:_SHOWN_MEMBERS]}
        for survivor, size in found[:_SHOWN_CLUSTERS]
    ]


def _contract_tasks(folder: Path, grouped: Sequence[Manifest], options: dict[str, int | str]) -> list[Task]:
    """Tasks that each take the next so many pairs; an edge has two documents."""
    most = max(1, int(options["num_documents"]) // 2)
    cuts: list[list[tuple[FileRange, int, int]]] = []
    room = 0
    for one in grouped:
        first, count = 0, one.values["edges"]
        while first < count:
            if not room:
                cuts.append([])
                room = most
            taken = min(room, count - first)
            cuts[-1].append((one.output(f"{one.name}.npy"), first, first + taken))
            first, room = first + taken, room - taken
    return [
        Task(
            operation="fuzzy_contract",
            folder=str(folder),
            name=f"part-{number:06d}",
            options={**options, "ranges": [[first, stop] for _, first, stop in cut]},
            inputs=tuple(file for file, _, _ in cut),
            read_bytes=sum(EDGE.itemsize * (stop - first) for _, first, stop in cut),
        )
        for number, cut in enumerate(cuts)
    ]


def contract_edges(task: Task) -> TaskResult:
    """The operation `fuzzy_contract`: stars of some pairs, both ways, to NAME.stars."""
    edges = []
    for file, (first, stop) in zip(task.inputs, task.options["ranges"], strict=True):
        (mapped,) = read_edges([Path(file.path)])
        edges.append(np.array(mapped[first:stop]))
    return _write_stars(task, iter([contracted(edges)]), both_ways=True)


def next_stars(task: Task) -> TaskResult:
    """The operation `fuzzy_star`: one half of a round on one slice, to NAME.stars; `moved` counts what changed."""
    is_large = task.options["half"] == "large"
    star = (LargeStar if is_large else SmallStar)(partial(_edges, task))
    # The large star, which comes next, wants every edge at both documents, the small star at the larger one.
    result = _write_stars(task, star.edges(), both_ways=not is_large)
    result.values = {"moved": star.moved}
    return result


def _edges(task: Task) -> Iterator[npt.NDArray[np.void]]:
    paths = [Path(one.path) for one in read_input_list(task.inputs[0])]
    chunks = (chunk for path in paths for chunk in read_slice(path, EDGE, task.options["slice"]))
    return batched(chunks, max(1, task.options["num_documents"] // 2))


def _write_stars(task: Task, edges: Iterator[npt.NDArray[np.void]], *, both_ways: bool) -> TaskResult:
    num_slices, name = task.options["num_slices"], f"{task.name}.stars"
    # A chunk is held three times while it is ordered.
    buffer_bytes = min(_MOST_BUFFER_BYTES, EDGE.itemsize * task.options["num_documents"])
    with SliceWriter(Path(task.folder, name), num_slices, EDGE, buffer_bytes) as writer:
        for records in edges:
            writer.add(slice_numbers(records["node"], num_slices), records)
            if both_ways:
                writer.add(slice_numbers(records["other"], num_slices), edge_records(records["other"], records["node"]))
    return TaskResult(outputs=[name])


def weigh_slice(task: Task) -> TaskResult:
    """The operation `fuzzy_weigh`: the documents of a slice that do not survive, and for how many each stands.

    NAME.removed has them in ascending order, NAME.weights the numbers, each with the survivor, by its slice.
    """
    num_slices = task.options["num_slices"]
    found = np.concatenate([np.empty(0, dtype=EDGE), *(one[one["node"] > one["other"]] for one in _edges(task))])
    # A document may be there several times, always with the same survivor.
    removed, places = np.unique(found["node"], return_index=True)
    survivors = found["other"][places]
    weights = np.empty(len(removed), dtype=_WEIGHT)
    weights["node"], weights["weight"] = survivors, _copies_of(task, removed)
    names = [f"{task.name}.removed", f"{task.name}.weights"]
    with atomic_output(Path(task.folder, names[0]), sync=False) as stream:
        stream.write(removed.tobytes())
    with SliceWriter(Path(task.folder, names[1]), num_slices, _WEIGHT) as writer:
        writer.add(slice_numbers(survivors, num_slices), weights)
    return TaskResult(outputs=names, values={"members": _some_members(removed, weights)})


def _some_members(removed: npt.NDArray[np.uint64], weights: npt.NDArray[np.void]) -> dict[str, list[int]]:
    """By survivor, of those that stand for most: a few of ``removed``. A large cluster is in all slices."""
    order = np.argsort(weights["node"], kind="stable")
    nodes, first, counts = np.unique(weights["node"][order], return_index=True, return_counts=True)
    sums = np.add.reduceat(weights["weight"][order], first).astype(np.int64) if len(nodes) else counts
    return {
        str(nodes[place]): removed[order[first[place] : first[place] + min(counts[place], _SHOWN_MEMBERS)]].tolist()
        for place in np.argsort(-sums, kind="stable")[:_NAMED_CLUSTERS]
    }


def add_up_slice(task: Task) -> TaskResult:
    """The operation `fuzzy_size`: the survivors of a slice and the sizes of their clusters, to NAME.sizes."""
    survivors, sizes = np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.uint64)
    for one in read_input_list(task.inputs[0]):
        for weights in read_slice(Path(one.path), _WEIGHT, task.options["slice"]):
            nodes = np.concatenate([survivors, weights["node"]])
            values = np.concatenate([sizes, weights["weight"]])
            survivors, places = np.unique(nodes, return_inverse=True)
            sizes = np.zeros(len(survivors), dtype=np.uint64)
            np.add.at(sizes, places, values)
    table = np.stack([survivors, sizes + _copies_of(task, survivors)], axis=1)
    name = f"{task.name}.sizes"
    with atomic_output(Path(task.folder, name), sync=False) as stream:
        stream.write(table.tobytes())
    largest = np.argsort(-table[:, 1].astype(np.int64), kind="stable")[:_SHOWN_CLUSTERS]
    return TaskResult(outputs=[name], values={"largest": table[largest].tolist()})


def _copies_of(task: Task, documents: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """[n] for how many documents each of ``documents``, ascending, stands; one, if no file of copies names it."""
    counts = np.ones(len(documents), dtype=np.uint64)
    if not len(documents):
        return counts
    for one in read_input_list(task.inputs[1]):
        (copies,) = read_edges([Path(one.path)])
        first = int(np.searchsorted(copies[:, 0], documents[0], side="left"))
        stop = int(np.searchsorted(copies[:, 0], documents[-1], side="right"))
        part = np.array(copies[first:stop])
        places = np.searchsorted(documents, part[:, 0]).clip(max=len(documents) - 1)
        known = documents[places] == part[:, 0]
        counts[places[known]] = part[known, 1]
    return counts


def join_clusters(task: Task) -> TaskResult:
    """The operation `fuzzy_join`: the slices put together to `REMOVED` and `SIZES`."""
    counts = []
    for name, one, row in ((REMOVED, task.inputs[0], 1), (SIZES, task.inputs[1], 2)):
        files = read_input_list(one)
        counts.append(sum(file.size_bytes for file in files) // (row * _COUNT.itemsize))
        with atomic_output(Path(task.folder, name), sync=False) as stream:
            _write_header(stream, (counts[-1],) if row == 1 else (counts[-1], row))
            for file in files:
                stream.write(Path(file.path).read_bytes())
    return TaskResult(outputs=[REMOVED, SIZES], values={"largest": task.options["largest"]})


def _write_header(stream: BinaryIO, shape: tuple[int, ...]) -> None:
    """What `np.save` writes before an array of such a shape."""
    header = {"descr": _COUNT.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
