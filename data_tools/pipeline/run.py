"""A whole pipeline: its stages one after the other, finished parts skipped, counts kept for the report."""

import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from data_tools.corpus.lock import corpus_lock
from data_tools.engine.document import DocumentStatistics
from data_tools.engine.executor import Executor
from data_tools.engine.own_files import remove_leftovers
from data_tools.engine.removed_documents import (
    Removed,
    RemovedInputsError,
    forget_removed,
    remove_documents,
    removed_documents,
)
from data_tools.engine.runner import Runner, Share
from data_tools.engine.task import QUARANTINE_FILE, STAGE_FILE, Manifest, documents_file
from data_tools.errors import DataError
from data_tools.filters.histograms import merged
from data_tools.io.atomic_file import write_atomically
from data_tools.io.owned_paths import require_below
from data_tools.io.plain_text import printable
from data_tools.io.progress import shows_progress
from data_tools.io.small_json import SmallFileError, fits, read_object
from data_tools.pipeline.pipeline_file import ALL, LAST, NamedStage, Pipeline
from data_tools.version import version

SUMMARY = "pipeline.json"
_EXAMPLES_PER_REASON = 5


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What a run did.

    Attributes:
        stages: one JSON object a stage: name, kind, records_in, records_out, rejected, statistics, examples.
        timings: stage -> the seconds that it took; of a stage that was skipped those of an earlier run.
        tasks_done, tasks_skipped: tasks done now, and found finished.
        removed_bytes: of documents that were removed because `keep_documents` says so.
        quarantine: the list of unreadable records.
    """

    stages: list[dict[str, Any]]
    timings: dict[str, dict[str, float]]
    tasks_done: int
    tasks_skipped: int
    removed_bytes: int
    quarantine: Path

    @property
    def unreadable(self) -> Mapping[str, int]:
        """Reason -> records that could not be read; none if the first stage began with another run's documents."""
        first = self.stages[0]
        return dict(first["rejected"]) if first["kind"] == "read" else {}

    @property
    def num_records(self) -> int:
        """Records read, good and bad."""
        return int(self.stages[0]["records_in"])


def run_pipeline(
    pipeline: Pipeline, executor: Executor, share: Share | None = None, inputs: Sequence[Manifest] = ()
) -> RunSummary:
    """Runs every stage of ``pipeline``; what is finished for the same inputs and options is not done again.

    Args:
        pipeline: from `load_pipeline`.
        executor: where tasks run.
        share: this process's part of the tasks if several array jobs run the same pipeline.
        inputs: parts of another run that the first stage begins with, if it is not `read`.
    Raises:
        DataError: an input cannot be used, a task failed, another process is working on the same output, or a
            symbolic link leads out of it.
        OSError: the disk is full or fails. Finished parts are kept in either case.
    """
    pipeline.output.mkdir(parents=True, exist_ok=True)
    with ExitStack() as locks:
        locks.enter_context(corpus_lock(pipeline.output / "run", shared=share is not None))
        if share is not None:
            locks.enter_context(corpus_lock(pipeline.output / f"shard-{share.index}-of-{share.count}"))
        else:
            remove_leftovers(pipeline.output)
        runner = Runner(executor, share, root=pipeline.output)
        run = _StageRun(pipeline, runner, inputs, _earlier_timings(pipeline.output))
        run.do_all()
        timings = {stage["name"]: run.timings[stage["name"]] for stage in run.summaries}
        summary = {
            "tool_version": version(),
            "pipeline": pipeline.name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "stages": run.summaries,
            "timings": timings,
        }
        write_atomically(pipeline.output / SUMMARY, orjson.dumps(summary, option=orjson.OPT_INDENT_2) + b"\n")
    return RunSummary(
        stages=run.summaries,
        timings=timings,
        tasks_done=runner.tasks_done,
        tasks_skipped=runner.tasks_skipped,
        removed_bytes=run.removed_bytes,
        quarantine=stage_folder(pipeline, 0) / QUARANTINE_FILE,
    )


class _StageRun:
    """The stages one after the other; of some the documents are removed when the next one has read them.

    When a stage needs documents that are gone, the one that made them is run once more, and so, if its own are gone,
    the one before that.

    Attributes:
        summaries: of the stages, in order.
        timings: stage -> seconds.
        removed_bytes: of the documents that were removed.
    """

    def __init__(
        self, pipeline: Pipeline, runner: Runner, inputs: Sequence[Manifest], timings: dict[str, dict[str, float]]
    ) -> None:
        self._pipeline = pipeline
        self._runner = runner
        self._parts: list[Sequence[Manifest]] = [inputs]  # what each stage begins with
        self._skipped = [0]  # tasks found finished before each stage
        self._told: set[int] = set()  # stages that were said to be done once more
        self.summaries: list[dict[str, Any]] = []
        self.timings = timings
        self.removed_bytes = 0

    def do_all(self) -> None:
        """See `run_pipeline`."""
        while (number := len(self.summaries)) < len(self._pipeline.stages):
            try:
                parts = self._do(number)
            except RemovedInputsError as error:
                self._go_back(number, error)
                continue
            self._parts.append(parts)
            self._skipped.append(self._runner.tasks_skipped)
            self._remove_documents(number)

    def _do(self, number: int) -> list[Manifest]:
        named, runner = self._pipeline.stages[number], self._runner
        runner.title = named.name
        if sys.stderr.isatty() and shows_progress():
            print(f"stage {number + 1} of {len(self._pipeline.stages)}: {named.name}", file=sys.stderr)
        folder = stage_folder(self._pipeline, number)
        require_below(folder, self._pipeline.output)
        runner.removed = self._not_missed(number)
        records_in = sum(part.records_out for part in self._parts[number])
        started, tasks_done = time.monotonic(), runner.tasks_done
        parts: list[Manifest] = named.stage.run(runner, folder, self._parts[number])
        if runner.tasks_done > tasks_done or named.name not in self.timings:
            self.timings[named.name] = {"seconds": round(time.monotonic() - started, 3)}
        summary = stage_summary(named, parts)
        if named.kind != "read" and summary["records_in"] != records_in:
            raise RuntimeError(
                f"stage {named.name}: read {summary['records_in']} records, but the stage before it wrote "
                f"{records_in}; this is a bug"
            )
        write_stage_manifest(folder, summary, parts)
        self.summaries.append(summary)
        return parts

    def _not_missed(self, number: int) -> Removed | None:
        """What was removed from a stage and need not be there, unless a later stage asks for it."""
        folder = stage_folder(self._pipeline, number)
        removed = removed_documents(folder)
        if removed is None or number > self._pipeline.last_documents:
            return None
        if number < self._pipeline.last_documents and self._pipeline.keep_documents != ALL:
            return removed
        if number not in self._told and any(not (folder / name).exists() for name in removed.documents):
            self._told.add(number)
            name = self._pipeline.stages[number].name
            _say(f"stage {name}: its documents were removed ({removed.by}), and this run keeps them: made again")
        return None

    def _go_back(self, number: int, error: RemovedInputsError) -> None:
        """Lets the stage before ``number`` be run once more, and says what follows from it."""
        stages = [stage.name for stage in self._pipeline.stages]
        removed = removed_documents(stage_folder(self._pipeline, number - 1))
        why = f"stage {stages[number]}: is not finished for these inputs and options, and the documents of "
        why += f"{stages[number - 1]} that it reads were removed ({removed.by if removed else 'keep_documents'})"
        if not self._runner.is_alone:
            raise DataError(f"{why}; array jobs do not make them again: run once without --shard") from error
        if number - 1 not in self._told:
            first = number - 1
            while first > 0 and any(not part.path(documents_file(part.name)).exists() for part in self._parts[first]):
                first -= 1
            self._told.update(range(first, number))
            _say(f"{why}; made again: {', '.join(stages[first:number])}")
        del self._parts[number:], self._skipped[number:], self.summaries[number - 1 :]
        self._runner.tasks_skipped = self._skipped[-1]

    def _remove_documents(self, number: int) -> None:
        """Removes the documents that stage ``number``, which is finished, has read, if they are not to be kept."""
        pipeline, runner = self._pipeline, self._runner
        last = pipeline.last_documents
        if not runner.is_alone:
            return  # Another array job may not have come as far.
        if number == last or pipeline.keep_documents == ALL:
            forget_removed(stage_folder(pipeline, number))
        if pipeline.keep_documents != LAST or not 0 < number <= last:
            return
        folder = stage_folder(pipeline, number - 1)
        paths, num_bytes = remove_documents(folder, self._parts[number], f"keep_documents: {LAST}")
        runner.note_removed(paths)
        self.removed_bytes += num_bytes


def _say(line: str) -> None:
    print(printable(f"qwen-data: {line}"), file=sys.stderr, flush=True)


def _earlier_timings(output: Path) -> dict[str, dict[str, float]]:
    """What an earlier run says of its stages; nothing if there was none, or it is damaged."""
    try:
        timings = read_object(output / SUMMARY).get("timings")
    except SmallFileError:
        return {}
    return dict(timings) if timings is not None and fits(timings, dict[str, dict[str, float]]) else {}


def stage_folder(pipeline: Pipeline, number: int) -> Path:
    """Where a stage works: OUTPUT/stages/NN-name."""
    return pipeline.output / "stages" / f"{number + 1:02d}-{pipeline.stages[number].name}"


def stage_summary(named: NamedStage, parts: Sequence[Manifest]) -> dict[str, Any]:
    """The counts of a stage, added up over its parts."""
    rejected: Counter[str] = Counter()
    statistics = DocumentStatistics()
    examples: dict[str, list[Any]] = {}
    measured: dict[str, dict[str, Any]] = {}
    for part in parts:
        merged(measured, part.values.get("measured", {}))
        rejected.update(part.rejected)
        statistics.merge(part.statistics)
        for reason, entries in part.examples.items():
            known = examples.setdefault(reason, [])
            known += entries[: _EXAMPLES_PER_REASON - len(known)]
    return {
        "name": named.name,
        "kind": named.kind,
        "options": named.options(),
        "parts": len(parts),
        "records_in": sum(part.records_in for part in parts),
        "records_out": sum(part.records_out for part in parts),
        "copied": sum(part.copied for part in parts),
        "rejected": dict(sorted(rejected.items())),
        "statistics": statistics.as_dict(),
        "tokens": {part.name: part.values["tokens"] for part in parts if "tokens" in part.values},
        "shares": {part.name: part.values["share"] for part in parts if "share" in part.values},
        "epochs": {part.name: part.values["epochs"] for part in parts if "epochs" in part.values},
        "matches": _matches(parts),
        "clusters": _clusters(parts),
        "measured": measured,
        "examples": examples,
    }


def _matches(parts: Sequence[Manifest]) -> dict[str, list[int]]:
    """Benchmark -> [documents, matches] of a decontamination."""
    table: dict[str, list[int]] = {}
    for part in parts:
        for name, (documents, matches) in part.values.get("matches", {}).items():
            entry = table.setdefault(name, [0, 0])
            entry[0] += documents
            entry[1] += matches
    return dict(sorted(table.items()))


def _clusters(parts: Sequence[Manifest]) -> list[dict[str, Any]]:
    """The largest clusters of near duplicates, with some documents of each, the one that is kept first."""
    found: dict[str, dict[str, Any]] = {}
    for part in parts:
        for survivor, cluster in part.values.get("clusters", {}).items():
            found.setdefault(survivor, {"size": cluster["size"], "documents": []})["documents"] += cluster["documents"]
    for cluster in found.values():
        cluster["documents"].sort(key=lambda document: not document["is_kept"])
    return sorted(found.values(), key=lambda cluster: -cluster["size"])


def write_stage_manifest(folder: Path, summary: dict[str, Any], parts: Sequence[Manifest]) -> None:
    """Writes STAGE/stage.json: counts of the stage, its parts' manifests in order, checksums of its shards."""
    content = {
        "tool_version": version(),
        **summary,
        "manifests": [os.path.relpath(Path(part.folder, f"{part.name}.manifest.json"), folder) for part in parts],
        "outputs": {name: entry for part in parts for name, entry in part.outputs.items()},
    }
    write_atomically(folder / STAGE_FILE, orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n")
