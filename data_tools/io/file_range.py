"""What a task or a reader reads: a file, or a part of one."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class FileRange:
    """What a task reads: a range of a file of the user's, or a file that another task wrote.

    Attributes:
        path: where it is.
        start, stop: byte range (JSON Lines, plain) or row groups (Parquet); stop is None for the whole file.
        size_bytes, mtime_ns: identity of a user's file.
        sha256: identity of a file that a task wrote; None for a user's file.
    """

    path: str
    start: int = 0
    stop: int | None = None
    size_bytes: int = 0
    mtime_ns: int = 0
    sha256: str | None = None

    @property
    def num_bytes(self) -> int:
        """Roughly how much there is to read."""
        return self.size_bytes if self.stop is None else min(self.stop, self.size_bytes) - self.start

    def identity(self) -> dict[str, Any]:
        """What the result depends on: of files written by tasks the content, not the place."""
        if self.sha256 is not None:
            return {"name": Path(self.path).name, "sha256": self.sha256}
        return asdict(self)
