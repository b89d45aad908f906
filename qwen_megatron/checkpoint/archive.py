"""Finds a tensor's bytes inside the archive that torch.save made of it, so that they are read where they belong.

torch.load copies a tensor three times: the archive out of the file, the tensor out of the archive, the tensor to its
place. An archive is taken here only if its pickle is, byte for byte, what torch.save writes of one contiguous tensor of
the expected dtype and shape: nothing is unpickled. All others are left to torch.load.

The archive is a zip file whose members are not compressed: PREFIX/data.pkl, PREFIX/byteorder, PREFIX/data/0 with the
tensor's bytes, and a few that do not matter.
"""

from __future__ import annotations

import io
import math
import os
import struct
import sys
import zipfile
from collections.abc import Sequence

import torch

from qwen_megatron.checkpoint.unpickler import tensor_pickle

# Everything of an archive but the tensor's bytes takes less than 2 kB.
MOST_BYTES_AT_ONCE = 1 << 17
LOCAL_HEADER = struct.Struct("<4s22xHH")
LOCAL_SIGNATURE = b"PK\x03\x04"
# What zipfile makes of a file that is no archive, or a hostile one.
NO_ARCHIVE = (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, LookupError, struct.error)


class FilePart(io.RawIOBase):
    """A part of a file as a file of its own, of which little is read at once.

    Args:
        descriptor: Of the whole file.
        start: Where the part begins.
        length: Its bytes.
    """

    def __init__(self, descriptor: int, start: int, length: int):
        self.descriptor, self.start, self.length = descriptor, start, length
        self.place = 0

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.place, os.SEEK_END: self.length}[whence]
        if not 0 <= base + offset <= self.length:
            raise ValueError("beyond the archive")
        self.place = base + offset
        return self.place

    def tell(self) -> int:
        return self.place

    def read(self, size: int | None = -1) -> bytes:
        """As much as there is, at most `size` bytes.

        Raises:
            ValueError: if that is more than anything but a tensor takes.
        """
        left = self.length - self.place
        size = left if size is None or size < 0 else min(size, left)
        if size > MOST_BYTES_AT_ONCE:
            raise ValueError("an archive of one tensor has no part of this size")
        content = os.pread(self.descriptor, size, self.start + self.place)
        self.place += len(content)
        return content


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    # Along an axis of one number a contiguous tensor may have any stride.
    flat = tensor.detach().as_strided((tensor.numel(),), (1,))
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]


def tensor_start(descriptor: int, start: int, length: int, dtype: torch.dtype, shape: Sequence[int]) -> int | None:
    """Where in a file the bytes of a tensor begin; None if the archive is not of one contiguous tensor like this.

    Args:
        descriptor: Of the file.
        start: Where the archive begins.
        length: Its bytes.
        dtype: Of the tensor.
        shape: Of the tensor.
    Raises:
        OSError: if the file cannot be read.
    """
    try:
        return find_tensor(FilePart(descriptor, start, length), dtype, shape)
    except NO_ARCHIVE:
        return None


def find_tensor(archive: FilePart, dtype: torch.dtype, shape: Sequence[int]) -> int | None:
    """Does the work of `tensor_start`, which takes what this may raise of a file that is no archive."""
    with zipfile.ZipFile(archive) as zipped:
        members = {member.filename.partition("/")[2]: member for member in zipped.infolist()}
        if len(members) != len(zipped.infolist()):
            return None
        pickled = tensor_pickle(dtype, shape)
        for name, content in (("data.pkl", pickled), ("byteorder", sys.byteorder.encode())):
            begin = member_start(archive, members[name], len(content), zipped.start_dir)
            if begin is None or archive.seek(begin) != begin or archive.read(len(content)) != content:
                return None
        size = math.prod(shape) * dtype.itemsize
        begin = member_start(archive, members["data/0"], size, zipped.start_dir)
    return None if begin is None else archive.start + begin


def member_start(archive: FilePart, member: zipfile.ZipInfo, size: int, end: int) -> int | None:
    """Where in an archive the bytes of an uncompressed member begin; None if it is no member of this size.

    Args:
        archive: The archive.
        member: What its directory says.
        size: Bytes it must have.
        end: Where the directory begins.
    """
    if member.compress_type != zipfile.ZIP_STORED or not size == member.file_size == member.compress_size:
        return None
    archive.seek(member.header_offset)
    signature, name_bytes, extra_bytes = LOCAL_HEADER.unpack(archive.read(LOCAL_HEADER.size))
    begin = archive.tell() + name_bytes + extra_bytes
    return begin if signature == LOCAL_SIGNATURE and begin + size <= end else None
