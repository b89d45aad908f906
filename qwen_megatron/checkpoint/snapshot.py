"""Memory that holds what a rank is about to write, while training goes on and changes the originals."""

from __future__ import annotations

import contextlib
import io
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.filesystem import FileSystem

from data_tools.io.direct_file import large_pages

BLOCK_BYTES = 64 << 20


class Arena:
    """Grows by blocks and keeps them for the next snapshot: memory that is touched anew costs as much as the disk.

    Blocks are anonymous memory for which the kernel is asked for huge pages.
    """

    def __init__(self) -> None:
        self.blocks: list[mmap.mmap] = []
        self.size = 0

    def clear(self) -> None:
        """Forgets the content, keeps the memory."""
        self.size = 0

    def write(self, data: Any) -> int:
        """Appends the bytes of any buffer."""
        view = memoryview(data).cast("B")
        taken = 0
        while taken < len(view):
            block, start = divmod(self.size, BLOCK_BYTES)
            if block == len(self.blocks):
                self.blocks.append(large_pages(BLOCK_BYTES))
            count = min(len(view) - taken, BLOCK_BYTES - start)
            self.blocks[block][start : start + count] = view[taken : taken + count]
            taken += count
            self.size += count
        return len(view)

    def tell(self) -> int:
        """Bytes held."""
        return self.size

    def flush(self) -> None:
        """Nothing is kept back."""

    def close(self) -> None:
        """The content stays."""

    def pieces(self) -> Iterator[memoryview]:
        """The content, in order."""
        for number in range(-(-self.size // BLOCK_BYTES)):
            stop = min(BLOCK_BYTES, self.size - number * BLOCK_BYTES)
            yield memoryview(self.blocks[number])[:stop]


class MemoryFileSystem(FileSystem):
    """Takes files into memory: shards into an arena, the metadata, which is small, into a buffer of its own.

    Attributes:
        files: Pieces of each file, in order, by name.
    """

    def __init__(self, arena: Arena):
        arena.clear()
        self.arena = arena
        self.files: dict[str, list[memoryview]] = {}

    @contextlib.contextmanager
    def create_stream(self, path: Any, mode: str) -> Iterator[Any]:
        name = Path(path).name
        if name.endswith(".distcp"):
            yield self.arena
            self.files[name] = list(self.arena.pieces())
        else:
            buffer = io.BytesIO()
            yield buffer
            self.files[name] = [buffer.getbuffer()]

    def exists(self, path: Any) -> bool:
        return Path(path).name in self.files

    def rename(self, path: Any, new_path: Any) -> None:
        self.files[Path(new_path).name] = self.files.pop(Path(path).name)

    def mkdir(self, path: Any) -> None:
        """There are no folders."""
