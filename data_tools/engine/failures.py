"""Tasks that failed: why, when and where, in NAME.failed.json beside what they would have made, until they are done."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import orjson

from data_tools.engine.task import Task
from data_tools.errors import DataError
from data_tools.io.atomic_file import write_atomically
from data_tools.io.small_json import build, read_object

_SUFFIX = ".failed.json"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """The last failure of a task."""

    operation: str
    error: str
    time: str
    host: str


def record_failure(task: Task, error: str) -> None:
    """Notes that ``task`` failed. If that fails too, for want of disk say, the error itself is worth more."""
    failure = Failure(
        operation=task.operation,
        error=error,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        host=socket.gethostname(),
    )
    with suppress(OSError):
        write_atomically(_path(task), orjson.dumps(asdict(failure), option=orjson.OPT_INDENT_2) + b"\n")


@contextmanager
def recorded(task: Task) -> Iterator[None]:
    """Notes what goes wrong inside, and lets it pass."""
    try:
        yield
    except (DataError, OSError) as error:
        record_failure(task, str(error))
        raise


def forget_failure(task: Task) -> None:
    """The task is done."""
    _path(task).unlink(missing_ok=True)


def failures(folder: Path) -> Iterator[tuple[str, Failure]]:
    """(path below ``folder`` without suffix, failure) of each task that has failed and has not been done since.

    Raises:
        SmallFileError: a record is damaged.
    """
    for path in sorted(folder.rglob(f"*{_SUFFIX}")):
        name = str(path.relative_to(folder)).removesuffix(_SUFFIX)
        yield name, build(Failure, read_object(path), str(path))


def _path(task: Task) -> Path:
    return Path(task.folder, f"{task.name}{_SUFFIX}")
