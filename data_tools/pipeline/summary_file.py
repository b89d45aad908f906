"""pipeline.json of a finished run, read without trust: what its report and a later run take from it."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_tools.filters.histograms import NUM_BINS
from data_tools.io.small_json import SmallFileError, build, fits, is_count, read_object
from data_tools.pipeline.run import SUMMARY

# Bits of a number of characters; no text has more than this.
_MOST_BITS = 64
_MOST_EPOCHS = 1e15
_MOST_SECONDS = 1e10


@dataclass(frozen=True, kw_only=True)
class StageSummary:
    """One entry of `stages`, as `run.stage_summary` makes it."""

    name: str
    kind: str
    options: dict[str, Any]
    parts: int
    records_in: int
    records_out: int
    copied: int
    rejected: dict[str, int]
    statistics: dict[str, dict[str, Any]]
    tokens: dict[str, int]
    shares: dict[str, float]
    epochs: dict[str, float]
    matches: dict[str, list[int]]
    examples: dict[str, list[dict[str, Any]]]
    # Runs of earlier versions have none.
    measured: dict[str, dict[str, Any]] = field(default_factory=dict)
    clusters: list[dict[str, Any]] = field(default_factory=list)


def read_summary(output: Path) -> dict[str, Any]:
    """What a run left in its output, every value of the type that is used.

    Args:
        output: of the run.
    Returns:
        tool_version, pipeline, created, timings, and stages with the keys of `StageSummary`; at least one stage.
    Raises:
        MissingFileError: no pipeline has finished there.
        SmallFileError: the file is damaged, or nothing that a run writes.
    """
    path = output / SUMMARY
    content = read_object(path)
    stages = content.get("stages")
    if not isinstance(stages, list) or not stages:
        raise SmallFileError(f"{path}: stages must be a list of at least one")
    content.setdefault("pipeline", output.name)  # Runs of earlier versions do not say.
    for name in ("tool_version", "created", "pipeline"):
        if not isinstance(content.get(name), str):
            raise SmallFileError(f"{path}: {name} must be text")
    timings = content.get("timings", {})
    if not fits(timings, dict[str, dict[str, float]]) or not all(
        0 <= seconds < _MOST_SECONDS for entry in timings.values() for seconds in entry.values()
    ):
        raise SmallFileError(f"{path}: timings must have a number of seconds for each stage")
    checked = [build(StageSummary, stage, f"{path}: stages[{number}]") for number, stage in enumerate(stages)]
    for stage in checked:
        _check(stage, f"{path}: stage {stage.name}")
    return {**content, "timings": timings, "stages": [asdict(stage) for stage in checked]}


def _check(stage: StageSummary, where: str) -> None:
    counts = [stage.records_in, stage.records_out, stage.copied, *stage.rejected.values(), *stage.tokens.values()]
    rules = {
        "a count is below 0": all(map(is_count, counts)),
        "shares and epochs must be of its corpora": stage.shares.keys() == stage.epochs.keys() <= stage.tokens.keys(),
        "a number of epochs is out of bounds": all(0 <= number <= _MOST_EPOCHS for number in stage.epochs.values()),
        "matches must be pairs of counts": all(map(_is_pair, stage.matches.values())),
        "measured must be limits and counts of bins": all(map(_is_histogram, stage.measured.values())),
        "clusters must have a size and documents with id, text and is_kept": all(map(_is_cluster, stage.clusters)),
        "an example must have id, detail and text": all(
            {"id", "detail", "text"} <= entry.keys() for entries in stage.examples.values() for entry in entries
        ),
    }
    for rule, holds in rules.items():
        if not holds:
            raise SmallFileError(f"{where}: {rule}")
    check_statistics(stage.statistics, where)


def check_statistics(statistics: dict[str, Any], where: str) -> None:
    """Whether statistics are what `DocumentStatistics.as_dict` gives.

    Raises:
        SmallFileError: they are not.
    """
    for name in ("by_source", "by_language"):
        table = statistics.get(name)
        if not fits(table, dict[str, list[int]]) or not all(map(_is_pair, statistics[name].values())):
            raise SmallFileError(f"{where}: statistics.{name} must have two counts for each name")
    for name in ("dropped_by_source", "dropped_by_language"):
        dropped = statistics.get(name, {})  # Runs of earlier versions have none.
        if not fits(dropped, dict[str, dict[str, int]]) or not all(
            is_count(count) for counts in dropped.values() for count in counts.values()
        ):
            raise SmallFileError(f"{where}: statistics.{name} must have a count for each reason and name")
    lengths = statistics.get("by_length")
    if not fits(lengths, dict[str, int]) or not all(
        key.isascii() and key.isdigit() and len(key) <= 2 and int(key) <= _MOST_BITS and is_count(count)
        for key, count in statistics["by_length"].items()
    ):
        raise SmallFileError(f"{where}: statistics.by_length must have a count for each number of bits")


def _is_pair(values: list[Any]) -> bool:
    return len(values) == 2 and all(map(is_count, values))


def _is_cluster(cluster: dict[str, Any]) -> bool:
    documents = cluster.get("documents")
    return (
        is_count(cluster.get("size"))
        and isinstance(documents, list)
        and all(isinstance(one, dict) and {"id", "text", "is_kept"} <= one.keys() for one in documents)
    )


def _is_histogram(rule: dict[str, Any]) -> bool:
    counts = rule.get("counts")
    return (
        isinstance(counts, list)
        and len(counts) == NUM_BINS
        and all(map(is_count, counts))
        and isinstance(rule.get("is_least"), bool)
        and fits(rule.get("limit"), float)
        and 0 < rule["limit"] < _MOST_EPOCHS
    )
