"""What a run holds, for the console: stages, statistics of one, documents it kept or dropped, tasks that failed."""

import hashlib
import heapq
import io
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
import zstandard

from data_tools.engine.document import Document, read_documents
from data_tools.engine.failures import failures
from data_tools.engine.removed_documents import removed_documents
from data_tools.engine.task import STAGE_FILE
from data_tools.errors import DataError, RefusedError
from data_tools.pipeline.summary_file import read_summary

_SHOWN_CHARACTERS = 600
KEPT = "kept"


def format_stages(output: Path) -> str:
    """One line a stage: what came, what went on, seconds."""
    summary = read_summary(output)
    lines = [f"{summary['pipeline']} ({summary['created']}, qwen-data {summary['tool_version']})"]
    for number, stage in enumerate(summary["stages"], 1):
        seconds = summary["timings"].get(stage["name"], {}).get("seconds", 0.0)
        removed = _removed_by(_folder(output, number, stage["name"]))
        lines.append(
            f"{stage['name']:<16} {stage['records_in']:>12,} -> {stage['records_out']:>12,} {seconds:>9,.1f} s"
            + (f"  documents removed ({removed})" if removed else "")
        )
    return "\n".join([*lines, "--stage NAME shows one of them, --sample N documents of it", *_failed(output)])


def format_unfinished(output: Path) -> str:
    """Of a run that is under way or has stopped: one line a stage that has begun, and the tasks that failed."""
    lines = [f"{output}: not finished; the same command goes on from here"]
    for folder in sorted(path for path in (output / "stages").iterdir() if path.is_dir()):
        done = sum(1 for _ in folder.rglob("*.manifest.json"))
        state = "finished" if (folder / STAGE_FILE).is_file() else "under way"
        if removed := _removed_by(folder):
            state += f", documents removed ({removed})"
        lines.append(f"{folder.name.partition('-')[2]:<16} {done:>12,} tasks done, {state}")
    return "\n".join([*lines, *_failed(output)])


def failed_tasks(output: Path) -> list[dict[str, str]]:
    """Task, operation, error, time and host of each task that failed and has not been done since."""
    return [{"task": name, **asdict(failure)} for name, failure in failures(output / "stages")]


def _failed(output: Path) -> Iterator[str]:
    for task in failed_tasks(output):
        yield f"failed: {task['task']} ({task['operation']}, {task['time']}, {task['host']}): {task['error']}"


def format_stage(output: Path, name: str) -> str:
    """Reasons, sources, languages and lengths of a stage.

    Raises:
        RefusedError: the run has no such stage.
    """
    stage, folder = _stage(output, name)
    statistics = stage["statistics"]
    lines = [f"{name}: {stage['records_in']:,} documents in, {stage['records_out']:,} out"]
    if removed := _removed_by(folder):
        lines.append(f"its documents were removed ({removed}); run again with --keep-documents all to have them")
    for reason, count in sorted(stage["rejected"].items(), key=lambda item: -item[1]):
        by_source = statistics.get("dropped_by_source", {}).get(reason, {})
        sources = ", ".join(f"{source} {number:,}" for source, number in by_source.items())
        lines.append(f"  {reason:<40} {count:>12,}  {sources}")
    for table in ("by_source", "by_language"):
        lines.append(f"{table.replace('_', ' ')}, documents and MB that went on:")
        for key, (documents, num_bytes) in sorted(statistics[table].items(), key=lambda item: -item[1][1]):
            lines.append(f"  {key or '(none)':<40} {documents:>12,} {num_bytes / 1e6:>12,.2f}")
    lines.append("characters, documents that went on:")
    for bits, count in statistics["by_length"].items():
        lines.append(f"  up to {2 ** int(bits) - 1:<34,} {count:>12,}")
    return "\n".join(lines)


def sample(output: Path, name: str, reason: str, count: int) -> Iterator[dict[str, Any]]:
    """Documents of a stage, the same ones whenever they are asked for, spread over all of its parts.

    Args:
        output: of the run.
        name: of the stage.
        reason: why they were dropped; KEPT for those that went on.
        count: how many.
    Returns:
        id, source, language, detail and the beginning of the text of each.
    Raises:
        RefusedError: the run has no such stage, dropped nothing for this reason, or its documents were removed.
        DataError: a file is damaged.
    """
    stage, folder = _stage(output, name)
    if reason != KEPT and reason not in stage["rejected"]:
        raise RefusedError(f"{name}: dropped nothing as {reason}; there are {', '.join([KEPT, *stage['rejected']])}")
    if reason == KEPT and (removed := _removed_by(folder)):
        raise RefusedError(
            f"{name}: its documents were removed ({removed}); --reason shows those that it dropped, which stay; run "
            "again with --keep-documents all to have all"
        )
    found = _kept(folder) if reason == KEPT else _dropped(folder, reason)
    chosen = heapq.nsmallest(count, found, key=lambda entry: _number(entry[0].id))
    for document, detail in chosen:
        yield {
            "id": document.id,
            "source": document.source,
            "language": document.language,
            "detail": detail,
            "text": document.text[:_SHOWN_CHARACTERS],
        }


def _number(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()


def _stage(output: Path, name: str) -> tuple[Mapping[str, Any], Path]:
    stages = read_summary(output)["stages"]
    for number, stage in enumerate(stages, 1):
        if stage["name"] == name:
            return stage, _folder(output, number, name)
    raise RefusedError(f"{output}: has no stage {name}; there are {', '.join(stage['name'] for stage in stages)}")


def _folder(output: Path, number: int, name: str) -> Path:
    return output / "stages" / f"{number:02d}-{name}"


def _removed_by(folder: Path) -> str:
    """The setting because of which documents of a stage are not there; "" if all are."""
    removed = removed_documents(folder)
    return removed.by if removed and any(not (folder / name).exists() for name in removed.documents) else ""


def _kept(folder: Path) -> Iterator[tuple[Document, str]]:
    for path in sorted(folder.glob("part-??????.jsonl.zst")):
        for document in read_documents(path):
            yield document, ""


def _dropped(folder: Path, reason: str) -> Iterator[tuple[Document, str]]:
    paths = sorted(folder.glob("part-??????.dropped.jsonl.zst"))
    if not paths:
        raise DataError(f"{folder}: has no dropped documents; rejected.jsonl there lists records that were not read")
    for path in paths:
        try:
            with path.open("rb") as stream, zstandard.ZstdDecompressor().stream_reader(stream) as reader:
                for line in io.BufferedReader(reader):
                    entry = orjson.loads(line)
                    if entry["reason"] == reason:
                        yield Document(**entry["document"]), entry["detail"]
        except (OSError, zstandard.ZstdError, orjson.JSONDecodeError, TypeError, KeyError) as error:
            raise DataError(f"{path}: cannot be read: {error}; run the pipeline again") from error
