"""Clusters of duplicates, and the one document of each that survives."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_tools import _native


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

    The result depends on the set of edges only, not on their order or how they are split. Memory: 24 bytes for each
    document that has a duplicate, and the largest of the arrays about three times; none for unique documents.
    """
    documents = np.empty(0, dtype=np.uint64)
    for part in edges:
        documents = np.union1d(documents, np.asarray(part).ravel())
    roots = np.arange(len(documents), dtype=np.int64)
    for part in edges:
        _native.join_components(np.searchsorted(documents, part).astype(np.int64), roots)
    return Components(documents, documents[roots])
