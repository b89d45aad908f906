"""Documents of finished stages that were removed to save disk: what is removed, and what says so.

`STAGE/removal.json` is written before the first file goes. It names the documents with their checksums, so that a task
without them still counts as finished, unlike one whose file somebody else took away.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from data_tools.engine.task import Manifest, Task, documents_file, finished
from data_tools.io.atomic_file import write_atomically
from data_tools.io.owned_paths import is_plain_name
from data_tools.io.small_json import SmallFileError, build, read_object

REMOVED_FILE = "removal.json"


@dataclass(frozen=True, kw_only=True)
class Removed:
    """What `removal.json` says.

    Attributes:
        by: the setting that asked for it, as it is written in a pipeline file.
        documents: name of a file of the stage -> its SHA-256.
    """

    by: str
    documents: dict[str, str]


class RemovedInputsError(Exception):
    """Tasks are to be done that read documents which were removed.

    Attributes:
        paths: of these documents, all of one stage.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self.paths = frozenset(paths)
        super().__init__(f"removed documents are needed: {', '.join(sorted(self.paths))}")


def removed_documents(folder: Path) -> Removed | None:
    """What was removed from the folder of a stage; None for nothing, or if the file that says so is damaged.

    Some of it may be there: removal was interrupted, or it was made again.
    """
    path = folder / REMOVED_FILE
    try:
        removed = build(Removed, read_object(path), str(path))
    except SmallFileError:
        return None
    return removed if all(map(is_plain_name, removed.documents)) else None


def remove_documents(folder: Path, parts: Sequence[Manifest], by: str) -> tuple[list[str], int]:
    """Removes the documents of a stage, and nothing else of it.

    Args:
        folder: of the stage.
        parts: the manifests of the stage, which name the documents.
        by: the setting that asks for it.
    Returns:
        the paths of the documents of all parts, and the bytes of those that were still there.
    Raises:
        OSError: a file cannot be removed.
    """
    files = {part.path(documents_file(part.name)): part for part in parts}
    present = [path for path in files if path.is_symlink() or path.exists()]
    if present:
        documents = {path.name: part.outputs[path.name]["sha256"] for path, part in files.items()}
        content = asdict(Removed(by=by, documents=documents))
        write_atomically(folder / REMOVED_FILE, orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n")
    num_bytes = 0
    for path in present:
        num_bytes += path.lstat().st_size
        path.unlink()
    return list(map(str, files)), num_bytes


def forget_removed(folder: Path) -> None:
    """All documents of the stage are there, and stay."""
    (folder / REMOVED_FILE).unlink(missing_ok=True)


def finished_without(task: Task, removed: Removed) -> Manifest | None:
    """The manifest of ``task`` if it is finished but for its documents, which were removed; `task.finished` otherwise.

    Args:
        task: whose files are not all there.
        removed: what was removed from its folder.
    """
    name = documents_file(task.name)
    manifest = finished(task, may_lack=name)
    if manifest is None or name not in manifest.outputs:
        return None
    return manifest if manifest.outputs[name]["sha256"] == removed.documents.get(name) else None
