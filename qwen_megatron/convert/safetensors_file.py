"""safetensors files: a strict reader, and a writer that holds one tensor at a time.

A file is eight bytes with the length of its header, the header (a JSON object: name -> dtype, shape, first and last
byte), and the tensors' bytes without holes. Reading goes through the file, not through mapped pages: what was read is
given back with the tensor, and a file that somebody cuts short is an error, not a signal.
Source: https://github.com/huggingface/safetensors, "Format".
"""

from __future__ import annotations

import json
import math
import os
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from data_tools.io.direct_file import DirectFile
from data_tools.io.small_json import LARGEST_BYTES, SmallFileError, fits, parse_json, shown
from data_tools.io.uncached import read_into
from qwen_megatron.checkpoint.archive import bytes_of
from qwen_megatron.errors import CheckpointError

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
# Bytes of a number, of whatever may stand in a header; only `DTYPES` are read.
ITEM_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "I16": 2, "U16": 2} | {
    name: size for size, names in ((4, ("I32", "U32")), (8, ("I64", "U64", "F64"))) for name in names
}
ITEM_BYTES |= {name: dtype.itemsize for name, dtype in DTYPES.items()}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
LENGTH_BYTES = 8


@dataclass(frozen=True)
class StoredTensor:
    """What the header of a safetensors file says of a tensor.

    Attributes:
        file: Where it is.
        shape: Its shape.
        dtype: safetensors' name of its dtype.
        start: Where its bytes begin in the file.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: str
    start: int


class SafetensorsFile:
    """A file whose header has been checked against its size; tensors are read when asked for.

    Args:
        path: The file.
        uncached: Whether tensors are read once, so that their pages need not stay in memory.
    Attributes:
        tensors: What it holds, by name, in the order of its bytes.
    Raises:
        CheckpointError: if the header is longer than the file or than any real one, garbled, or promises bytes that
            overlap, leave a hole or are not there.
    """

    def __init__(self, path: Path, *, uncached: bool = False):
        self.path = path
        self.uncached = uncached
        try:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self.descriptor)
            self.tensors = self.read_header()
        except (SmallFileError, OSError) as error:
            raise CheckpointError(f"{path}: is not a whole safetensors file ({error})") from error

    def read_header(self) -> dict[str, StoredTensor]:
        """The tensors of the file.

        Raises:
            SmallFileError: saying what is wrong.
        """
        size = os.fstat(self.descriptor).st_size
        length = int.from_bytes(os.pread(self.descriptor, LENGTH_BYTES, 0), "little")
        # Compared before anything is read: the length is a number that anybody may have written.
        content = os.pread(self.descriptor, length, LENGTH_BYTES) if length <= min(size, LARGEST_BYTES) else b""
        header = parse_json(content, "its header") if len(content) == length and length else None
        if not isinstance(header, dict):
            raise SmallFileError(f"its header should be an object of {length} bytes")
        header.pop("__metadata__", None)
        begin = LENGTH_BYTES + length
        tensors = {name: self.stored(name, entry, begin) for name, entry in header.items()}
        end = begin
        for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, size_bytes(item[1]))):
            if tensor.start != end:
                raise SmallFileError(f"{shown(name)} begins at byte {tensor.start}, where {end} was expected")
            end += size_bytes(tensor)
        if end != size:
            raise SmallFileError(f"it has {size} bytes, its header says {end}")
        return tensors

    def stored(self, name: str, entry: object, begin: int) -> StoredTensor:
        """One entry of the header.

        Args:
            name: Of the tensor.
            entry: As parsed.
            begin: Where the tensors begin in the file.
        Raises:
            SmallFileError: if it is garbled, or its bytes are not as many as its shape has.
        """
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise SmallFileError(f"{shown(name)} should have dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
            raise SmallFileError(f"{shown(name)} has the unknown dtype {shown(dtype)}")
        if not (fits(shape, list[int]) and fits(offsets, list[int]) and min([*shape, *offsets, 0]) >= 0):
            raise SmallFileError(f"{shown(name)} should have a shape and offsets of whole numbers")
        if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * ITEM_BYTES[dtype]:
            raise SmallFileError(f"{shown(name)} is {dtype} {shown(shape)}, which is not the bytes {shown(offsets)}")
        return StoredTensor(self.path, tuple(shape), dtype, begin + offsets[0])

    def read(self, name: str, rows: slice | None = None, *columns: slice) -> torch.Tensor:
        """A tensor of one of `DTYPES`, or a box of it, of which no more is read than it holds.

        Args:
            name: Of the tensor.
            rows: Range of the first axis, with start and stop; None for all.
            columns: Ranges of the second one, likewise.
        Raises:
            OSError: if the file cannot be read, or has become shorter.
        """
        stored = self.tensors[name]
        box = [range(size)[part] for size, part in zip(stored.shape, (rows or slice(None), *columns), strict=False)]
        shape = (*(len(side) for side in box), *stored.shape[len(box) :])
        values = torch.empty(shape, dtype=DTYPES[stored.dtype])
        target = bytes_of(values)
        row_bytes = math.prod(stored.shape[1:]) * values.itemsize
        first = stored.start + (box[0].start * row_bytes if box else 0)
        if len(box) < 2 or len(box[1]) == stored.shape[1]:
            read_into(self.descriptor, target, first, uncached=self.uncached)
            return values
        inner_bytes = math.prod(stored.shape[2:]) * values.itemsize
        width = len(box[1]) * inner_bytes
        for number in range(len(box[0])):
            piece = target[number * width : (number + 1) * width]
            read_into(self.descriptor, piece, first + number * row_bytes + box[1].start * inner_bytes)
        return values

    def read_rows(self, name: str, first: int, target: torch.Tensor) -> None:
        """Fills a contiguous tensor with rows of a tensor.

        Args:
            name: Of the tensor.
            first: Number of the first row.
            target: As many rows as are wanted, of the same dtype.
        Raises:
            OSError: if the file cannot be read, or has become shorter.
        """
        stored = self.tensors[name]
        start = stored.start + first * math.prod(stored.shape[1:]) * target.itemsize
        read_into(self.descriptor, bytes_of(target), start, uncached=self.uncached)


def size_bytes(tensor: StoredTensor) -> int:
    """Bytes of its values."""
    return math.prod(tensor.shape) * ITEM_BYTES[tensor.dtype]


def write_safetensors(
    path: Path, planned: Mapping[str, tuple[tuple[int, ...], torch.dtype]], tensors: Iterable[tuple[str, torch.Tensor]]
) -> None:
    """Writes a file tensor by tensor, on its way to the disk all the while.

    Args:
        path: An empty file or none.
        planned: Shape and dtype of each tensor, in the order in which they come.
        tensors: The tensors.
    Raises:
        OSError: if the disk is full.
    """
    header, starts = layout(planned)
    file = DirectFile(path)
    try:
        file.write(memoryview(header))
        for (name, (shape, dtype)), (came, tensor) in zip(planned.items(), tensors, strict=True):
            if (came, tuple(tensor.shape), tensor.dtype) != (name, tuple(shape), dtype):
                raise RuntimeError(f"{came} came where {name} was planned")
            file.write(bytes_of(tensor.contiguous()), starts[name])
        file.finish()
    finally:
        file.close()


def layout(planned: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> tuple[bytes, dict[str, int]]:
    """The header with its length, and where in the file each tensor begins.

    Wide numbers come first, so that each tensor begins at a multiple of its numbers' size: readers rely on that.
    """
    entries, starts, end = {}, {}, 0
    for name, (shape, dtype) in sorted(planned.items(), key=lambda item: -item[1][1].itemsize):
        size = math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [end, end + size]}
        starts[name] = end
        end += size
    text = json.dumps({"__metadata__": {"format": "pt"}, **entries}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    begin = LENGTH_BYTES + len(text)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text, {name: begin + start for name, start in starts.items()}
