"""The unit of work: a task turns inputs into files and a manifest; a finished task is recognised and not done again."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from data_tools.errors import PathError
from data_tools.io.atomic_file import sync_files, write_atomically
from data_tools.io.checksums import sha256_of_file
from data_tools.io.file_range import FileRange
from data_tools.io.owned_paths import require_plain_name, require_plain_path
from data_tools.io.small_json import SmallFileError, build, fits, is_count, read_object, shown
from data_tools.version import version

# Part of every key: raise it when an operation's output changes for the same input and options.
ENGINE_VERSION = 7
# Files in a stage's folder that belong to the stage, not to one of its tasks.
STAGE_FILE = "stage.json"
QUARANTINE_FILE = "rejected.jsonl"


@dataclass(frozen=True, kw_only=True)
class Task:
    """One piece of a stage, small enough to be done again after a crash.

    Attributes:
        operation: name in `operations.OPERATIONS`.
        folder: where its files and its manifest go.
        name: stem of the manifest, unique in the folder.
        options: configuration, plain JSON values.
        inputs: what it reads.
        documents: how many it takes, where that is known.
        read_bytes: how much it reads, if that is not the size of its inputs: some of the files of a list, say.
    """

    operation: str
    folder: str
    name: str
    options: Mapping[str, Any]
    inputs: tuple[FileRange, ...]
    # For the progress bar only: no part of the key.
    documents: int | None = None
    read_bytes: int | None = None

    @property
    def manifest_path(self) -> Path:
        """Where the manifest is when the task is finished."""
        return Path(self.folder, f"{self.name}.manifest.json")

    @property
    def num_bytes(self) -> int:
        """Roughly how much it reads, for the progress bar."""
        return sum(one.num_bytes for one in self.inputs) if self.read_bytes is None else self.read_bytes

    def key(self) -> str:
        """Hash of everything the result depends on: operation, options, inputs, version of the tool."""
        parts = {
            "engine": ENGINE_VERSION,
            "tool_version": version(),
            "operation": self.operation,
            "name": self.name,
            "options": dict(self.options),
            "inputs": [one.identity() for one in self.inputs],
        }
        return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()


@dataclass(kw_only=True)
class TaskResult:
    """What an operation reports.

    Attributes:
        outputs: names of the files it wrote into the task's folder.
        records_in, records_out: records read and passed on; always records_in + copied = records_out + all of rejected.
        copied: records passed on beyond the first time.
        rejected: reason -> records.
        statistics: JSON object for the report.
        examples: reason -> a few dropped documents.
        values: JSON object for the tasks of the next phase.
        digests: output -> size and SHA-256, of its content or of what stands for that, where the operation knows them.
        check: a last look at the result, without which no manifest is written; it may run beside the next task.
    """

    outputs: list[str] = field(default_factory=list)
    records_in: int = 0
    records_out: int = 0
    copied: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    statistics: Mapping[str, Any] = field(default_factory=dict)
    examples: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    digests: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    check: Callable[[], None] | None = None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of NAME.manifest.json, written last: a task without it is not finished."""

    key: str
    folder: str
    name: str
    operation: str
    tool_version: str
    inputs: list[dict[str, Any]]
    records_in: int
    records_out: int
    rejected: dict[str, int]
    outputs: dict[str, dict[str, Any]]  # file name -> size_bytes, sha256: see TaskResult.digests
    statistics: dict[str, Any]
    examples: dict[str, Any]
    values: dict[str, Any]
    copied: int = 0

    def output(self, name: str) -> FileRange:
        """A file of this task as input of another."""
        entry = self.outputs[name]
        path = str(Path(self.folder, name))
        return FileRange(path=path, size_bytes=entry["size_bytes"], sha256=entry["sha256"])

    def path(self, name: str) -> Path:
        """Where a file of this task is."""
        return Path(self.folder, name)


def documents_file(name: str) -> str:
    """The output with the documents of the part ``name`` of a stage."""
    return f"{name}.jsonl.zst"


def write_manifest(task: Task, result: TaskResult) -> Manifest:
    """Checks the counts, takes checksums of the outputs, waits until they are on the disk and writes the manifest.

    Raises:
        RuntimeError: records were lost or invented; a bug in the operation.
    """
    rejected = {reason: int(count) for reason, count in sorted(result.rejected.items()) if count}
    if result.records_in + result.copied != result.records_out + sum(rejected.values()):
        raise RuntimeError(
            f"{task.folder}/{task.name}: {result.records_in} records in and {result.copied} copies, but "
            f"{result.records_out} out and {sum(rejected.values())} rejected ({rejected}); this is a bug in "
            f"{task.operation}"
        )
    outputs = {}
    for name in result.outputs:
        path = Path(task.folder, name)
        size_bytes, sha256 = result.digests.get(name) or (path.stat().st_size, sha256_of_file(path))
        outputs[name] = {"size_bytes": size_bytes, "sha256": sha256}
    sync_files([Path(task.folder, name) for name in result.outputs])
    content: dict[str, Any] = {
        "key": task.key(),
        "name": task.name,
        "operation": task.operation,
        "tool_version": version(),
        "inputs": [asdict(one) for one in task.inputs],
        "records_in": result.records_in,
        "records_out": result.records_out,
        "copied": result.copied,
        "rejected": rejected,
        "outputs": outputs,
        "statistics": dict(result.statistics),
        "examples": dict(result.examples),
        "values": dict(result.values),
    }
    write_atomically(task.manifest_path, orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n")
    return Manifest(folder=task.folder, **content)


def read_manifest(folder: Path, name: str) -> Manifest:
    """The manifest of a finished task.

    Raises:
        SmallFileError: it is absent or damaged.
        PathError: a name in it is a path, and would lead out of a folder.
    """
    path = folder / f"{require_plain_name(name, f'{folder}: name of a task')}.manifest.json"
    content = read_object(path)
    if "folder" in content:
        raise SmallFileError(f"{path}: folder is not a known key")
    manifest = build(Manifest, {**content, "folder": str(folder)}, str(path))
    if require_plain_name(manifest.name, f"{path}: name") != name:
        raise PathError(f"{path}: name={manifest.name!r} is not that of the file")
    _check(manifest, path)
    return manifest


def _check(manifest: Manifest, path: Path) -> None:
    """Looks below the first level of a manifest."""
    counts: list[object] = [manifest.records_in, manifest.records_out, manifest.copied, *manifest.rejected.values()]
    for output, entry in manifest.outputs.items():
        require_plain_path(output, f"{path}: outputs")
        counts.append(entry.get("size_bytes"))
        if not isinstance(entry.get("sha256"), str):
            raise SmallFileError(f"{path}: outputs.{shown(output)}.sha256 must be text")
    if not all(map(is_count, counts)):
        raise SmallFileError(f"{path}: a count or a size is not a whole number of at least 0")
    by_source = manifest.statistics.get("by_source", {})
    if not fits(by_source, dict[str, Any]):
        raise SmallFileError(f"{path}: statistics.by_source must be an object")
    for source in by_source:
        require_plain_name(source, f"{path}: statistics.by_source")


def finished(task: Task, *, may_lack: str | None = None) -> Manifest | None:
    """The manifest of ``task`` if it is finished for these inputs and options and its files are still there.

    Args:
        task: the task.
        may_lack: an output that need not be there.
    """
    manifest = intact(Path(task.folder), task.name, may_lack=may_lack)
    return manifest if manifest is not None and manifest.key == task.key() else None


def intact(folder: Path, name: str, *, may_lack: str | None = None) -> Manifest | None:
    """The manifest of a task that was finished for whatever inputs, if its files are still there in their sizes."""
    try:
        manifest = read_manifest(folder, name)
        for output, entry in manifest.outputs.items():
            if output == may_lack and not manifest.path(output).exists():
                continue
            if manifest.path(output).stat().st_size != entry["size_bytes"]:
                return None
    except (OSError, ValueError, SmallFileError, PathError):
        return None  # Absent or damaged: the task is done again.
    return manifest
