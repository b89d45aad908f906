"""Reading PREFIX.idx, Megatron's index of a token file (MMIDIDX).

Little-endian: "MMIDIDX\\0\\0" (9 bytes) | u64 version 1 | u8 dtype code | u64 sequences S | u64 D + 1, D documents |
i32 lengths[S] in tokens | i64 byte offsets[S] | i64 document_indices[D + 1], document d being the sequences
document_indices[d] to document_indices[d + 1] - 1 | optional i8 modes[S] (multimodal).
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_tools.corpus.sidecar import corpus_path
from data_tools.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
DTYPE_CODES = {"uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "uint16": 8}
_DTYPE_NAMES = {code: name for name, code in DTYPE_CODES.items()}
_FLOAT_CODES = {6: "float64", 7: "float32"}
_HEADER = struct.Struct("<9sQBQQ")
_ENTRIES_AT_ONCE = 1024 * 1024


class CorpusIndex:
    """An open index, memory mapped.

    Attributes:
        path: the .idx file.
        dtype: numpy type of the tokens in .bin.
        num_sequences: sequences; a document has one or more.
        num_documents: documents.
        num_tokens: tokens of all sequences, by the end of the last one.
        lengths: [num_sequences] int32 tokens.
        offsets: [num_sequences] int64 bytes into .bin.
        document_indices: [num_documents + 1] int64 first sequence of each document, then num_sequences.
    """

    def __init__(self, path: Path) -> None:
        """Use `CorpusIndex.open`."""
        self.path = path
        size, header = self._read_header()
        magic, version, code, self.num_sequences, document_entries = _HEADER.unpack(header)
        if magic != MAGIC or version != VERSION:
            raise DataError(
                f"{path}: not a Megatron index: it begins {magic!r} version {version}, not {MAGIC!r} version {VERSION}"
            )
        if code not in _DTYPE_NAMES:
            kind = _FLOAT_CODES.get(code, "unknown")
            raise DataError(f"{path}: dtype code {code} ({kind}) is not an integer type; tokens must be integers")
        self.dtype = np.dtype(_DTYPE_NAMES[code]).newbyteorder("<")
        expected = _HEADER.size + 12 * self.num_sequences + 8 * document_entries
        if document_entries < 1 or size not in (expected, expected + self.num_sequences):
            raise DataError(
                f"{path}: {size} bytes, but {self.num_sequences} sequences and {document_entries} document entries "
                f"take {expected}; the file is truncated or damaged"
            )
        self.num_documents = document_entries - 1
        content = np.memmap(path, dtype=np.uint8, mode="r")
        first, second, third = np.cumsum([_HEADER.size, 4 * self.num_sequences, 8 * self.num_sequences]).tolist()
        self.lengths = content[first:second].view("<i4")
        self.offsets = content[second:third].view("<i8")
        self.document_indices = content[third:expected].view("<i8")
        self._check_ends()

    @classmethod
    def open(cls, prefix: str | Path) -> "CorpusIndex":
        """Opens PREFIX.idx; its size must fit the counts in its header, its first and last entries each other.

        Raises:
            DataError: the file is missing or breaks the format.
        """
        return cls(corpus_path(prefix, "idx"))

    def __reduce__(self) -> tuple[Any, ...]:
        return CorpusIndex, (self.path,)  # Opened again, not copied.

    def _read_header(self) -> tuple[int, bytes]:
        try:
            size = self.path.stat().st_size
            with self.path.open("rb") as stream:
                header = stream.read(_HEADER.size)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror}") from error
        if len(header) < _HEADER.size:
            raise DataError(f"{self.path}: {size} bytes is too short for an index; its header takes {_HEADER.size}")
        return size, header

    def _check_ends(self) -> None:
        first, last = int(self.document_indices[0]), int(self.document_indices[-1])
        if first != 0 or last != self.num_sequences:
            raise DataError(
                f"{self.path}: documents cover sequences {first} to {last}, but there are {self.num_sequences}"
            )
        end_bytes = 0
        if self.num_sequences:
            end_bytes = int(self.offsets[-1]) + int(self.lengths[-1]) * self.dtype.itemsize
            if int(self.offsets[0]) != 0 or end_bytes < 0 or end_bytes % self.dtype.itemsize:
                raise DataError(
                    f"{self.path}: sequences begin at byte {int(self.offsets[0])} and end at byte {end_bytes}; they "
                    f"must begin at 0 and end on a token of {self.dtype.itemsize} bytes"
                )
        self.num_tokens = end_bytes // self.dtype.itemsize

    def document(self, number: int) -> tuple[int, int]:
        """Position of a document in .bin.

        Returns:
            its first token and its number of tokens.
        Raises:
            DataError: there is no such document, or its entries in the index contradict each other.
        """
        if not 0 <= number < self.num_documents:
            raise DataError(f"{self.path}: document {number} does not exist, there are {self.num_documents}")
        first, last = (int(sequence) for sequence in self.document_indices[number : number + 2])
        if not 0 <= first <= last <= self.num_sequences:
            raise DataError(f"{self.path}: document {number} has sequences {first} to {last} of {self.num_sequences}")
        start = self._sequence_start(first)
        length = self._sequence_start(last) - start
        if start < 0 or length < 0 or start + length > self.num_tokens:
            raise DataError(f"{self.path}: document {number} has {length} tokens from {start} of {self.num_tokens}")
        return start, length

    def _sequence_start(self, sequence: int) -> int:
        if sequence == self.num_sequences:
            return self.num_tokens
        return int(self.offsets[sequence]) // self.dtype.itemsize

    def document_ends(self) -> npt.NDArray[np.int64]:
        """[num_documents] int64 token position after the last token of each document.

        Raises:
            DataError: a document begins at a sequence that there is not.
        """
        wrong = (self.document_indices < 0) | (self.document_indices > self.num_sequences)
        if wrong.any():
            number = int(np.argmax(wrong))
            raise DataError(
                f"{self.path}: document {number} begins at sequence {int(self.document_indices[number])} of "
                f"{self.num_sequences}; the file is damaged"
            )
        starts = np.append(np.asarray(self.offsets) // self.dtype.itemsize, self.num_tokens)
        return starts[self.document_indices[1:]]

    def document_lengths(self) -> npt.NDArray[np.int64]:
        """[num_documents] int64 tokens of each document."""
        return np.diff(self.document_ends(), prepend=0)

    def validate(self) -> None:
        """Reads the whole index: sequences must lie back to back from byte 0, documents must be in order.

        Raises:
            DataError: names the first sequence or document that breaks a rule.
        """
        expected = 0
        for first, lengths, offsets in self._sequence_ranges():
            if (lengths < 0).any():
                sequence = first + int(np.argmax(lengths < 0))
                raise DataError(f"{self.path}: sequence {sequence} has length {int(self.lengths[sequence])}")
            ends = expected + np.cumsum(lengths) * self.dtype.itemsize
            wanted = np.concatenate(([expected], ends[:-1]))
            if (offsets != wanted).any():
                position = int(np.argmax(offsets != wanted))
                raise DataError(
                    f"{self.path}: sequence {first + position} begins at byte {int(offsets[position])} but the ones "
                    f"before it end at {int(wanted[position])}; sequences must lie back to back: write the corpus "
                    "again with Megatron's IndexedDatasetBuilder"
                )
            expected = int(ends[-1])
        for first in range(0, self.num_documents, _ENTRIES_AT_ONCE):
            steps = np.diff(self.document_indices[first : first + _ENTRIES_AT_ONCE + 1])
            if (steps < 0).any():
                raise DataError(f"{self.path}: document {first + int(np.argmax(steps < 0))} ends before it begins")

    def _sequence_ranges(self) -> Iterator[tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        for first in range(0, self.num_sequences, _ENTRIES_AT_ONCE):
            entries = slice(first, first + _ENTRIES_AT_ONCE)
            yield first, self.lengths[entries].astype(np.int64), self.offsets[entries].astype(np.int64)
