"""Verifies the bytes of a checkpoint beside the work that reads them: one pass over the disk instead of two."""

from __future__ import annotations

import contextlib
import hashlib
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data_tools.io.uncached import read_into
from qwen_megatron.checkpoint.choice import READ_BY_ALL, check_read_by_all
from qwen_megatron.checkpoint.manifest import FileEntry, check_sha256, read_manifest, verify_files
from qwen_megatron.errors import CheckpointError

PIECE_BYTES = 8 << 20
# What the work leaves out between two tensors is read at once if it is no more than this.
GAP_BYTES = 1 << 20
# Tensors that wait to be hashed, and hold their memory so long.
MOST_WAITING = 1


@contextlib.contextmanager
def verified_beside(folder: Path) -> Iterator[Verification]:
    """Verifies every byte of a checkpoint while the block reads it; for one process.

    Presence and size of all files, and the small ones that say what the others hold, are verified before the block
    begins. An error of the block waits for the verification: damaged bytes may be its cause, and are told instead.

    Args:
        folder: An `iter_NNNNNNN` folder.
    Yields:
        What is told of everything the block reads (`saw`), and must have been waited for (`wait`) before anybody gets
        what the block has made.
    Raises:
        CheckpointError: naming the first file that is missing, garbled, of another size or of another sha256.
    """
    files = read_manifest(folder)
    check_read_by_all(folder, files)
    verify_files(folder, files, READ_BY_ALL)
    others = {name: entry for name, entry in files.items() if name not in READ_BY_ALL}
    verification = Verification(folder, others)
    try:
        yield verification
    except Exception:
        verification.wait()
        raise
    finally:
        verification.stop()


class PartlyHashed:
    """A file of which the hash of the first bytes is known.

    Args:
        path: The file.
    Attributes:
        place: How many bytes those are.
    """

    def __init__(self, path: Path):
        self.path = path
        self.digest = hashlib.sha256()
        self.place = 0

    def take(self, view: memoryview) -> None:
        """Hashes what follows."""
        self.digest.update(view)
        self.place += len(view)

    def read(self, piece: memoryview) -> None:
        """Reads what follows into all of `piece`, and hashes it.

        Raises:
            CheckpointError: if the file cannot be read, or ends before.
        """
        try:
            with self.path.open("rb", buffering=0) as stream:
                read_into(stream.fileno(), piece, self.place, uncached=True)
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read ({error})") from error
        self.take(piece)


class Verification:
    """A thread that hashes files: what the work reads in the order of a file as it comes, the rest by itself.

    Args:
        folder: Where they are.
        files: What they should be.
    """

    def __init__(self, folder: Path, files: Mapping[str, FileEntry]):
        self.files = files
        self.hashed = {name: PartlyHashed(folder / name) for name in files}
        # File -> up to where the work has read it, if that is too far from what is hashed.
        self.behind: dict[str, int] = {}
        self.buffer = memoryview(bytearray(PIECE_BYTES))
        self.problem: Exception | None = None
        self.ended = threading.Event()
        self.stopped = threading.Event()
        # File, first byte and bytes; None when no more comes.
        self.seen: queue.Queue[tuple[str, int, memoryview] | None] = queue.Queue(MOST_WAITING)
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def saw(self, name: str, start: int, view: memoryview) -> None:
        """Takes what was read of a file from byte `start` on, which must not change any more.

        It waits for what came before, so that little memory is held for it. One thread at a time may call it.
        """
        if not self.ended.is_set():
            self.seen.put((name, start, view))

    def run(self) -> None:
        """Hashes what comes and what is behind, then the rest; what comes after an error is taken and forgotten."""
        while True:
            try:
                found = self.seen.get(block=not self.behind)
            except queue.Empty:
                self.guarded(self.catch_up)
                continue
            if found is None:
                break
            self.guarded(self.hash_seen, *found)
            # Before the next one is waited for: it may be all there is of a large tensor.
            del found
        self.guarded(self.check_all)

    def guarded(self, work: Callable[..., None], *arguments: Any) -> None:
        """Does some work unless there is no use in it any more, and keeps the error for `wait`."""
        if self.stopped.is_set() or self.problem is not None:
            self.behind.clear()
            return
        try:
            work(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever it is, `wait` raises it
            self.problem = error

    def hash_seen(self, name: str, start: int, view: memoryview) -> None:
        """Hashes what was read, if it follows what is hashed."""
        file = self.hashed.get(name)
        if file is None:
            return
        if start > file.place + GAP_BYTES:
            self.behind[name] = max(start, self.behind.get(name, 0))
            return
        if start > file.place:
            file.read(self.buffer[: start - file.place])
        if start + len(view) > file.place:
            file.take(view[file.place - start :])

    def catch_up(self) -> None:
        """Reads and hashes a piece of a file that is behind."""
        name, stop = next(iter(self.behind.items()))
        file = self.hashed[name]
        if file.place < stop:
            file.read(self.buffer[: stop - file.place])
        else:
            del self.behind[name]

    def check_all(self) -> None:
        """Reads and hashes what is left of each file, until one is wrong."""
        for name, file in self.hashed.items():
            while file.place < self.files[name].size:
                if self.stopped.is_set():
                    return
                file.read(self.buffer[: self.files[name].size - file.place])
            check_sha256(file.path, file.digest.hexdigest(), self.files[name])

    def wait(self) -> None:
        """Waits for the end; nothing is seen after this.

        Raises:
            CheckpointError: naming the first file that differs, with both hashes, or that cannot be read.
        """
        self.end()
        if self.problem is not None:
            raise self.problem

    def stop(self) -> None:
        """Ends the thread, whether it has come to its end or not."""
        self.stopped.set()
        self.end()

    def end(self) -> None:
        """Lets the thread come to its end, and waits for it."""
        if not self.ended.is_set():
            self.ended.set()
            self.seen.put(None)
        self.thread.join()
