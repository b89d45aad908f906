"""Verifies the bytes of a checkpoint beside the work that reads them: one pass over the disk instead of two."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from qwen_megatron.checkpoint.choice import READ_BY_ALL, check_read_by_all
from qwen_megatron.checkpoint.manifest import FileEntry, check_sha256, read_manifest, verify_files

PIECE_BYTES = 8 << 20


@contextlib.contextmanager
def verified_beside(folder: Path) -> Iterator[Callable[[], None]]:
    """Verifies every byte of a checkpoint while the block reads it; for one process.

    Presence and size of all files, and the small ones that say what the others hold, are verified before the block
    begins. An error of the block waits for the verification: damaged bytes may be its cause, and are told instead.

    Args:
        folder: An `iter_NNNNNNN` folder.
    Yields:
        What waits for the verification; to be called before anybody gets what the block has made.
    Raises:
        CheckpointError: naming the first file that is missing, garbled, of another size or of another sha256.
    """
    files = read_manifest(folder)
    check_read_by_all(folder, files)
    verify_files(folder, files, READ_BY_ALL)
    others = {name: entry for name, entry in files.items() if name not in READ_BY_ALL}
    verification = Verification(folder, others)
    try:
        yield verification.wait
    except Exception:
        verification.wait()
        raise
    finally:
        verification.stop()


class Verification:
    """A thread that hashes files.

    Args:
        folder: Where they are.
        files: What they should be.
    """

    def __init__(self, folder: Path, files: Mapping[str, FileEntry]):
        self.folder, self.files = folder, files
        self.problem: Exception | None = None
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        """Hashes one file after the other until one is wrong."""
        try:
            for name, entry in self.files.items():
                digest = hashlib.sha256()
                with (self.folder / name).open("rb", buffering=0) as stream:
                    while not self.stopped.is_set() and (piece := stream.read(PIECE_BYTES)):
                        digest.update(piece)
                if self.stopped.is_set():
                    return
                check_sha256(self.folder / name, digest.hexdigest(), entry)
        except Exception as error:  # noqa: BLE001 - whatever it is, `wait` raises it
            self.problem = error

    def wait(self) -> None:
        """Waits for the end.

        Raises:
            CheckpointError: naming the first file that differs, with both hashes.
            OSError: if a file cannot be read.
        """
        self.thread.join()
        if self.problem is not None:
            raise self.problem

    def stop(self) -> None:
        """Ends the thread, whether it has come to its end or not."""
        self.stopped.set()
        self.thread.join()
