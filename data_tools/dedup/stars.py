"""Clusters of a graph that does not fit in memory: rounds that bring every document nearer to the smallest of its own.

Edges lie in slices by document. A round looks at one slice after the other, or at many at once: the large star joins
all larger neighbours of a document to the smallest neighbour, the small star its smaller ones. They change no cluster,
and end when every cluster is a star around its smallest document.

Source: Kiveris, Lattanzi, Mirrokni, Rastogi, Vassilvitskii 2014, "Connected Components in MapReduce and Beyond".
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from data_tools.dedup.components import components
from data_tools.dedup.sliced_file import Chunks

EDGE = np.dtype([("node", "<u8"), ("other", "<u8")])


def edge_records(nodes: npt.NDArray[np.uint64], others: npt.NDArray[np.uint64]) -> npt.NDArray[np.void]:
    """[n] EDGE from each node to its other."""
    records = np.empty(len(nodes), dtype=EDGE)
    records["node"], records["other"] = nodes, others
    return records


def contracted(edges: Sequence[npt.NDArray[np.uint64]]) -> npt.NDArray[np.void]:
    """[k] EDGE from each document to the smallest of its cluster, in the graph of these edges ([m, 2] each) alone.

    Memory: see `components`.
    """
    found = components(edges)
    is_other = found.documents != found.survivors
    return edge_records(found.documents[is_other], found.survivors[is_other])


class Star:
    """One half of a round on one slice; memory for each document of the slice and for one array of edges.

    Args:
        chunks: the edges of the slice's documents, a document's own always in `node`.
    Attributes:
        moved: edges that changed, when `edges` has ended; a round without any is the last.
    """

    def __init__(self, chunks: Chunks) -> None:
        self._chunks = chunks
        self._nodes, self._least = _least_of_each(chunks())
        self.moved = 0

    def _least_at(self, nodes: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        return self._least[np.searchsorted(self._nodes, nodes)]


class LargeStar(Star):
    """Wants every edge twice, at either document."""

    def edges(self) -> Iterator[npt.NDArray[np.void]]:
        """From each larger neighbour to the smallest one, or to the document itself."""
        for chunk in self._chunks():
            larger = chunk[chunk["other"] > chunk["node"]]
            nodes = np.ascontiguousarray(larger["node"])
            least = np.minimum(self._least_at(nodes), nodes)
            self.moved += int((least != nodes).sum())
            yield _distinct(edge_records(larger["other"], least))


class SmallStar(Star):
    """Wants every edge once, at the larger document."""

    def edges(self) -> Iterator[npt.NDArray[np.void]]:
        """From each document, and each of its smaller neighbours, to the smallest one."""
        yield edge_records(self._nodes, self._least)
        for chunk in self._chunks():
            least = self._least_at(np.ascontiguousarray(chunk["node"]))
            is_other = chunk["other"] != least
            self.moved += int(is_other.sum())
            yield _distinct(edge_records(chunk["other"][is_other], least[is_other]))


def _least_of_each(
    chunks: Iterator[npt.NDArray[np.void]],
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """[n] the nodes of ``chunks``, ascending, and the smallest other of each."""
    table = np.empty(0, dtype=EDGE)
    for chunk in chunks:
        table = _in_order(np.concatenate([table, chunk]))
        table = table[_differs(table["node"])]
    return np.ascontiguousarray(table["node"]), np.ascontiguousarray(table["other"])


def _in_order(records: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    # A sort of records compares them one by one, many times slower than this.
    return records[np.lexsort((records["other"], records["node"]))]


def _distinct(records: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    records = _in_order(records)
    return records[_differs(records["node"]) | _differs(records["other"])]


def _differs(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """[n] whether a value is another one than that before it."""
    differs = np.ones(len(values), dtype=bool)
    differs[1:] = values[1:] != values[:-1]
    return differs
