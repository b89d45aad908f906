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
from data_tools.engine.runner import Runner, Share
from data_tools.engine.task import QUARANTINE_FILE, STAGE_FILE, Manifest
from data_tools.filters.histograms import merged
from data_tools.io.atomic_file import write_atomically
from data_tools.io.owned_paths import require_below
from data_tools.io.progress import shows_progress
from data_tools.io.small_json import SmallFileError, fits, read_object
from data_tools.pipeline.pipeline_file import NamedStage, Pipeline
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
        quarantine: the list of unreadable records.
    """

    stages: list[dict[str, Any]]
    timings: dict[str, dict[str, float]]
    tasks_done: int
    tasks_skipped: int
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
        parts = list(inputs)
        stages: list[dict[str, Any]] = []
        timings = _earlier_timings(pipeline.output)
        for number, named in enumerate(pipeline.stages):
            runner.title = named.name
            if sys.stderr.isatty() and shows_progress():
                print(f"stage {number + 1} of {len(pipeline.stages)}: {named.name}", file=sys.stderr)
            folder = stage_folder(pipeline, number)
            require_below(folder, pipeline.output)
            records_in = sum(part.records_out for part in parts)
            started, tasks_done = time.monotonic(), runner.tasks_done
            parts = named.stage.run(runner, folder, parts)
            if runner.tasks_done > tasks_done or named.name not in timings:
                timings[named.name] = {"seconds": round(time.monotonic() - started, 3)}
            stages.append(stage_summary(named, parts))
            if named.kind != "read" and stages[-1]["records_in"] != records_in:
                raise RuntimeError(
                    f"stage {named.name}: read {stages[-1]['records_in']} records, but the stage before it wrote "
                    f"{records_in}; this is a bug"
                )
            write_stage_manifest(folder, stages[-1], parts)
        timings = {stage["name"]: timings[stage["name"]] for stage in stages}
        summary = {
            "tool_version": version(),
            "pipeline": pipeline.name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "stages": stages,
            "timings": timings,
        }
        write_atomically(pipeline.output / SUMMARY, orjson.dumps(summary, option=orjson.OPT_INDENT_2) + b"\n")
    return RunSummary(
        stages=stages,
        timings=timings,
        tasks_done=runner.tasks_done,
        tasks_skipped=runner.tasks_skipped,
        quarantine=stage_folder(pipeline, 0) / QUARANTINE_FILE,
    )


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
