"""Clusters of duplicates, and the one document of each that survives."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_tools import _native

_PIECE_EDGES = 1 << 22


@dataclass(frozen=True)
class Components:
    """Clusters of two and more documents. Documents that are in none are unique."""

    documents: npt.NDArray[np.uint64]
    """[m] members of clusters, ascending."""
    survivors: npt.NDArray[np.uint64]
    """[m] smallest document of the cluster of each."""

    @property
    def removed(self) -> npt.NDArray[np.uint64]:
        """The documents that do not survive, ascending."""
        return self.documents[self.documents != self.survivors]

    def is_removed(self, documents: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """[n] True for the documents that do not survive."""
        return np.isin(documents, self.removed)

    def cluster_sizes(
        self, copies: npt.NDArray[np.uint64] | None = None
    ) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
        """The survivors, ascending, and the number of documents each one stands for, itself included.

        Args:
            copies: [k, 2] document and the number it stands for already; 1 for those
                not named. Documents in no cluster are passed over.
        """
        survivors, places = np.unique(self.survivors, return_inverse=True)
        counts = np.ones(len(self.documents), dtype=np.int64)
        if copies is not None and len(self.documents):
            found = np.searchsorted(self.documents, copies[:, 0]).clip(max=len(self.documents) - 1)
            known = self.documents[found] == copies[:, 0]
            counts[found[known]] = copies[known, 1]
        sizes = np.zeros(len(survivors), dtype=np.int64)
        np.add.at(sizes, places, counts)
        return survivors, sizes


def components(edges: Sequence[npt.NDArray[np.uint64]]) -> Components:
    """Connected components of the graph of all ``edges`` ([m, 2] each, mapped files for instance).

    The result depends on the set of edges only, not on their order or how they are split. Memory: about 100 bytes for
    each document that has a duplicate, at least 300 MB if there are millions of edges; none for unique documents.
    """
    documents = distinct_documents(edges)
    roots = np.arange(len(documents), dtype=np.int64)
    # Joining looks at every root once a call: pieces as long as the roots keep that in proportion.
    for piece in _pieces(edges, max(_PIECE_EDGES, len(documents))):
        _native.join_components(_places(documents, piece), roots)
    return Components(documents, documents[roots])


def distinct_documents(edges: Sequence[npt.NDArray[np.uint64]]) -> npt.NDArray[np.uint64]:
    """[n] the documents that ``edges`` name, ascending, each once.

    Sorted arrays of about equal length are merged, so that many arrays cost no more than one of their total length.
    """
    merged = [np.empty(0, dtype=np.uint64)]
    for piece in _pieces(edges, _PIECE_EDGES):
        merged.append(_distinct(piece.ravel()))
        while len(merged) > 1 and len(merged[-2]) <= 2 * len(merged[-1]):
            merged.append(_distinct(np.concatenate([merged.pop(), merged.pop()])))
    return merged[0] if len(merged) == 1 else _distinct(np.concatenate(merged))


def _pieces(edges: Sequence[npt.NDArray[np.uint64]], num_edges: int) -> Iterator[npt.NDArray[np.uint64]]:
    for part in edges:
        for start in range(0, len(part), num_edges):
            yield np.asarray(part[start : start + num_edges])


def _distinct(documents: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    # np.unique goes through a hash table first, whose random accesses cost ten times the sort of a million.
    ascending = np.sort(documents)
    is_new = np.ones(len(ascending), dtype=bool)
    is_new[1:] = ascending[1:] != ascending[:-1]
    return ascending[is_new]


def _places(documents: npt.NDArray[np.uint64], edges: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """[m, 2] place of every entry of ``edges`` in ``documents``."""
    flat = edges.ravel()
    # Looked up in ascending order: one walk through `documents` instead of a search that misses the cache at each step.
    order = np.argsort(flat)
    places = np.empty(len(flat), dtype=np.int64)
    places[order] = np.searchsorted(documents, flat[order])
    return places.reshape(-1, 2)
