"""Shingle sets of candidates on disk, for the exact check of pairs: any set is found without reading the others."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_tools.dedup.buckets import Edges
from data_tools.dedup.minhash import similarity
from data_tools.errors import DataError
from data_tools.io.atomic_file import atomic_output

_PLACE = np.dtype([("document", "<u8"), ("start", "<u8"), ("length", "<u8")])
_SHINGLE = np.dtype("<u8")


def set_files(folder: Path, name: str) -> tuple[Path, Path]:
    """The two files of one part: the sets one after the other, and where the set of each document lies."""
    return folder / f"{name}.sets", folder / f"{name}.places"


def write_shingle_sets(
    folder: Path, name: str, batches: Iterable[tuple[npt.NDArray[np.uint64], Sequence[npt.NDArray[np.uint64]]]]
) -> int:
    """Writes the sets of one part.

    Args:
        folder, name: see `set_files`.
        batches: document numbers [n] and the set of each (see `minhash.shingle_sets`).
    Returns:
        number of sets.
    """
    sets_path, places_path = set_files(folder, name)
    documents = [np.empty(0, dtype=np.uint64)]
    lengths = [0]
    with atomic_output(sets_path) as stream:
        for numbers, sets in batches:
            documents.append(numbers)
            for one in sets:
                stream.write(one.astype(_SHINGLE).tobytes())
                lengths.append(len(one))
    places = np.empty(len(lengths) - 1, dtype=_PLACE)
    places["document"] = np.concatenate(documents)
    places["start"], places["length"] = np.cumsum(lengths)[:-1], lengths[1:]
    with atomic_output(places_path) as stream:
        stream.write(places[np.argsort(places["document"])].tobytes())
    return len(places)


class ShingleSets:
    """The sets of all parts, mapped; memory: 40 bytes for each document of the pairs that are asked for."""

    def __init__(self, files: Sequence[tuple[Path, Path]]) -> None:
        """Opens what `write_shingle_sets` wrote, each part's (sets, places)."""
        self._parts = [(_mapped(sets, _SHINGLE), _mapped(places, _PLACE)) for sets, places in files]

    def similarities(self, pairs: Edges) -> npt.NDArray[np.float64]:
        """[m] exact Jaccard similarity of every pair [m, 2].

        Raises:
            DataError: a document is in no part.
        """
        documents = np.unique(pairs)
        part, row = self._find(documents)
        first, second = np.searchsorted(documents, pairs).T.tolist()
        return np.array(
            [
                similarity(self._set(part[a], row[a]), self._set(part[b], row[b]))
                for a, b in zip(first, second, strict=True)
            ]
        )

    def _find(self, documents: npt.NDArray[np.uint64]) -> tuple[list[int], list[int]]:
        part = np.full(len(documents), -1)
        row = np.zeros(len(documents), dtype=np.int64)
        for number, (_, places) in enumerate(self._parts):
            if not len(places):
                continue
            found = np.searchsorted(places["document"], documents).clip(max=len(places) - 1)
            here = places["document"][found] == documents
            part[here], row[here] = number, found[here]
        if (part < 0).any():
            raise DataError(f"shingle sets: document {documents[part < 0][0]} is in no part; delete the stage's folder")
        return part.tolist(), row.tolist()

    def _set(self, part: int, row: int) -> npt.NDArray[np.uint64]:
        sets, places = self._parts[part]
        start = int(places["start"][row])
        return np.asarray(sets[start : start + int(places["length"][row])])


def _mapped(path: Path, dtype: "np.dtype[np.void] | np.dtype[np.uint64]") -> npt.NDArray[np.void]:
    if path.stat().st_size == 0:  # Nothing can be mapped.
        return np.empty(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r")
