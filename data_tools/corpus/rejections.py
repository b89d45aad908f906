"""The list of rejected records: counted by reason, kept as file, line, reason and detail."""

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType

import orjson

from data_tools.corpus.sidecar import corpus_path
from data_tools.io.atomic_file import atomic_output
from data_tools.io.small_json import build, parse_json
from data_tools.io.streams import BROKEN
from data_tools.io.system_errors import naming
from data_tools.readers.jsonl import Rejection


def rejected_path(prefix: str | Path) -> Path:
    """Where the rejected records of a corpus are listed unless the user names another file."""
    return corpus_path(prefix, "rejected.jsonl")


class RejectionLog:
    """Collects rejections in a temporary file.

    Attributes:
        counts: reason -> number of records.
    """

    def __init__(self, temporary: Path) -> None:
        self._temporary = temporary
        self._stream = temporary.open("wb")
        self.counts: Counter[str] = Counter()

    def __enter__(self) -> "RejectionLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with naming(self._temporary):
            self._stream.close()

    def add(self, rejections: Sequence[Rejection]) -> None:
        """Appends rejections, in the order of the input."""
        for rejection in rejections:
            self.counts[rejection.reason] += 1
            with naming(self._temporary):
                self._stream.write(orjson.dumps(rejection, option=orjson.OPT_APPEND_NEWLINE))

    def publish(self, path: Path) -> None:
        """Gives the list its name; see `publish_list`."""
        with naming(self._temporary):
            self._stream.close()
        publish_list(self._temporary, path)


def publish_list(source: Path, path: Path) -> None:
    """Copies the list ``source`` to ``path``; an empty one removes what an earlier run left there."""
    if source.stat().st_size == 0:
        path.unlink(missing_ok=True)
        return
    # Copied, not renamed: the user may have named a file on another disk.
    with source.open("rb") as content, atomic_output(path) as target:
        shutil.copyfileobj(content, target)


def broken_streams(path: Path, largest: int) -> list[Rejection]:
    """The first ``largest`` entries of the list ``path`` that stand for the rest of a damaged file.

    Raises:
        SmallFileError: the list does not hold rejections.
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        return list(islice((one for one in _rejections(stream, path) if one.reason in BROKEN), largest))


def _rejections(lines: Iterable[bytes], path: Path) -> Iterator[Rejection]:
    for line in lines:
        yield build(Rejection, parse_json(line, str(path)), str(path))
