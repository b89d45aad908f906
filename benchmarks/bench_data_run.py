"""A whole run of `qwen-data run` on generated text of any size: cost by stage, and everything planted found.

    python benchmarks/bench_data_run.py --gigabytes 0.1 1 10 --folder /data/run --write
    python benchmarks/bench_data_run.py --gigabytes 20 --folder /data/run --keep-documents last

The stages are those of examples/pipeline.yaml but for normalise, quality and sample, which change nothing about size:
every stage keeps its documents on the disk, unless told otherwise. Reading, every count and, last, the bytes that the
tokens of each corpus stand for are compared with what was generated. A size that was measured in FOLDER before is not
measured again; its text and corpora are removed as soon as it is.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from results import machine_line, write_section

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data_tools.corpus.index import CorpusIndex  # noqa: E402
from data_tools.engine.executor import ProcessExecutor  # noqa: E402
from data_tools.engine.runner import Runner  # noqa: E402
from data_tools.engine.task import Manifest  # noqa: E402
from data_tools.pipeline.pipeline_file import NamedStage, load_pipeline  # noqa: E402
from data_tools.pipeline.run import RunSummary, run_pipeline  # noqa: E402
from data_tools.tokenizer.qwen import END_OF_DOCUMENT, read_vocabulary, vocab_path  # noqa: E402

WORKERS = 2
GB, MIB = 1e9, 1 << 20
TICKS = os.sysconf("SC_CLK_TCK")
SAMPLE_SECONDS = 2.0
_PIPELINE = """\
output: {folder}/out
stages:
  - kind: read
    inputs:
{inputs}
  - {{kind: language, keep: [en, zh, code], min_score: 0.3}}
  - kind: filter
  - kind: exact_dedup
  - kind: fuzzy_dedup
  - kind: decontaminate
    benchmarks: [{{name: exam, path: {folder}/exam.jsonl, text_key: question}}]
  - kind: tokenize
  - {{kind: mixture, weights: {{code: 2}}}}
"""


@dataclass
class StageCost:
    """What a stage took."""

    name: str
    documents: int = 0
    records_out: int = 0
    text_bytes: int = 0
    wall: float = 0.0
    processor: float = 0.0
    peak_mib: float = 0.0
    disk_bytes: int = 0


class Meter:
    """Processor time and memory of this process and its children, and the disk that a folder takes.

    Attributes:
        stages: one after the other.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.stages: list[StageCost] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[StageCost]:
        """Measures the block."""
        cost = StageCost(name)
        for process in _processes():
            (process / "clear_refs").write_text("5")
        wall, processor = time.monotonic(), _processor_seconds()
        over = threading.Event()
        sampler = threading.Thread(target=self._sample, args=(cost, over), daemon=True)
        sampler.start()
        try:
            yield cost
        finally:
            over.set()
            sampler.join()
        cost.wall, cost.processor = time.monotonic() - wall, _processor_seconds() - processor
        cost.peak_mib = max(map(_peak_mib, _processes()))
        self.stages.append(cost)

    def _sample(self, cost: StageCost, over: threading.Event) -> None:
        while True:
            ended = over.wait(SAMPLE_SECONDS)
            cost.disk_bytes = max(cost.disk_bytes, disk_bytes(self._folder))
            if ended:
                return


def _processes() -> list[Path]:
    """This process and all below it, workers are children of a fork server, by their folders in /proc."""
    found = [Path("/proc/self")]
    for process in found:  # Grows meanwhile.
        with suppress(OSError):
            children = [one for task in process.glob("task/*/children") for one in task.read_text().split()]
            found += [Path("/proc", one) for one in children]
    return found


def _processor_seconds() -> float:
    """User and system, of all that live; workers live as long as the run."""
    total = 0
    for process in _processes():
        values = (process / "stat").read_text().rpartition(")")[2].split()
        total += int(values[11]) + int(values[12])
    return total / TICKS


def _peak_mib(process: Path) -> float:
    for line in (process / "status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0.0


def disk_bytes(folder: Path) -> int:
    """What the files below ``folder`` take on the disk."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                total += 512 * os.lstat(os.path.join(where, name)).st_blocks
            except FileNotFoundError:
                continue
    return total


@dataclass
class MeasuredStage:
    """A stage that is measured while it runs."""

    stage: Any
    name: str
    meter: Meter

    def run(self, runner: Runner, folder: Path, inputs: Sequence[Manifest]) -> list[Manifest]:
        """See `pipeline_file.Stage`."""
        with self.meter.stage(self.name) as cost:
            done = self.stage.run(runner, folder, inputs)
        cost.documents = sum(part.records_out for part in inputs) or sum(part.records_in for part in done)
        cost.text_bytes = text_bytes(inputs)
        cost.records_out = sum(part.records_out for part in done)
        print(f"  {cost.name}: {cost.wall:,.0f} s, {cost.processor:,.0f} processor s", file=sys.stderr, flush=True)
        return done


class MeasuredNamedStage(NamedStage):
    """A named stage with a `MeasuredStage` in it."""

    def options(self) -> dict[str, Any]:
        """Of the stage that is measured."""
        return dataclasses.asdict(self.stage.stage)


def text_bytes(parts: Sequence[Manifest]) -> int:
    """UTF-8 bytes of the documents of parts."""
    return sum(size for part in parts for _, size in part.statistics.get("by_source", {}).values())


@dataclass
class RunCost:
    """One size."""

    gigabytes: float
    bytes: int
    generating: float
    stages: list[StageCost] = field(default_factory=list)
    planted: dict[str, dict[str, int]] = field(default_factory=dict)
    tokens: int = 0
    text_disk: int = 0
    keep_documents: str = "all"


def generate(folder: Path, num_bytes: float) -> dict[str, Counter[str]]:
    """Writes the text and the benchmark; what was planted, by source."""
    import generated_text as text

    planted: dict[str, Counter[str]] = {}
    with ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("fork")) as pool:
        written = {
            source.name: [
                pool.submit(text.write_shard, folder, source, number, blocks)
                for number, blocks in enumerate(text.shards_of(source, num_bytes))
            ]
            for source in text.SOURCES
        }
        for name, shards in written.items():
            planted[name] = sum((shard.result() for shard in shards), Counter())
    lines = [orjson.dumps({"question": item}) for item in text.benchmark_items()]
    (folder / "exam.jsonl").write_bytes(b"\n".join(lines))
    inputs = "\n".join(
        f"      - {{path: '{folder}/{source.name}/*{source.suffix}', source: {source.name}}}" for source in text.SOURCES
    )
    (folder / "pipeline.yaml").write_text(_PIPELINE.format(folder=folder, inputs=inputs))
    return planted


def measured_run(folder: Path, keep_documents: str) -> tuple[RunSummary, list[StageCost]]:
    """The pipeline of ``folder``, every stage measured."""
    pipeline = load_pipeline(folder / "pipeline.yaml")
    meter = Meter(pipeline.output)
    stages = tuple(
        MeasuredNamedStage(one.name, one.kind, MeasuredStage(one.stage, one.name, meter)) for one in pipeline.stages
    )
    with closing(ProcessExecutor(WORKERS)) as executor:
        told = dataclasses.replace(pipeline, stages=stages, keep_documents=keep_documents)
        summary = run_pipeline(told, executor)
    return summary, meter.stages


def check_counts(summary: RunSummary, planted: Mapping[str, Counter[str]]) -> None:
    """Every stage dropped what was planted for it, and nothing else."""
    total = sum(planted.values(), Counter())
    rejected = {stage["name"]: Counter(stage["rejected"]) for stage in summary.stages}
    bad = {kind.removeprefix("bad "): count for kind, count in total.items() if kind.startswith("bad ")}
    # One line in ten thousand has words too short on average, which is asked first.
    repeated = ("gopher_repetition_lines", "gopher_quality_short_words")
    filtered = Counter(
        {
            "repeated": sum(rejected["filter"][reason] for reason in repeated),
            "short": rejected["filter"]["gopher_quality_few_words"],
        }
    )
    assert filtered.total() == rejected["filter"].total(), rejected["filter"]
    for found, expected in (
        (rejected["read"], bad),
        (rejected["language"], {"other_language": total["other_language"]}),
        (filtered, {kind: total[kind] for kind in filtered}),
        (rejected["exact_dedup"], {"exact_duplicate": total["exact"]}),
        (rejected["fuzzy_dedup"], {"near_duplicate": total["near"]}),
        (rejected["decontaminate"], {"contaminated": total["contaminated"]}),
        (rejected["tokenize"], {}),
    ):
        assert dict(found) == dict(expected), (found, expected)


def check_corpora(folder: Path, planted: Mapping[str, Counter[str]]) -> int:
    """The tokens of each corpus stand for the bytes that were generated once, each document with its end.

    Returns:
        tokens of all.
    """
    widths = np.zeros(END_OF_DOCUMENT + 1, dtype=np.int64)
    for content, token in read_vocabulary(vocab_path()).items():
        widths[token] = len(content)
    num_tokens = 0
    for name, counts in planted.items():
        prefix = folder / "out" / "corpora" / name
        tokens = np.memmap(f"{prefix}.bin", dtype=np.int32, mode="r")
        num_bytes = num_ends = 0
        for first in range(0, len(tokens), 1 << 24):
            piece = np.asarray(tokens[first : first + (1 << 24)])
            num_bytes += int(widths[piece].sum())
            num_ends += int((piece == END_OF_DOCUMENT).sum())
        documents = CorpusIndex.open(prefix).num_documents
        found = {"bytes": num_bytes, "ends": num_ends, "documents": documents}
        expected = {"bytes": counts["own_bytes"], "ends": counts["own"], "documents": counts["own"]}
        assert found == expected, (name, found, expected)
        num_tokens += len(tokens)
    return num_tokens


def measure(gigabytes: float, folder: Path, keep_documents: str) -> RunCost:
    """One size, in a folder of its own that is empty or not there."""
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    planted = generate(folder, gigabytes * GB)
    num_bytes = sum(one["bytes"] for one in planted.values())
    cost = RunCost(gigabytes, num_bytes, time.monotonic() - started, keep_documents=keep_documents)
    cost.text_disk = disk_bytes(folder)
    print(f"{cost.bytes / GB:.2f} GB generated in {cost.generating:,.0f} s", file=sys.stderr, flush=True)
    summary, cost.stages = measured_run(folder, keep_documents)
    cost.stages[0].text_bytes = cost.bytes
    cost.planted = {name: dict(counts) for name, counts in planted.items()}
    # What was measured is worth keeping whatever the checks say.
    (folder / "unchecked.json").write_text(json.dumps(dataclasses.asdict(cost)))
    check_counts(summary, planted)
    cost.tokens = check_corpora(folder, planted)
    return cost


def stored(path: Path) -> RunCost | None:
    """A size that was measured before."""
    if not path.exists():
        return None
    content = json.loads(path.read_bytes())
    return RunCost(**{**content, "stages": [StageCost(**stage) for stage in content["stages"]]})


def whole_table(run: RunCost) -> Iterator[str]:
    """The stages of one run."""
    yield (
        "| stage | documents in | out | text in, GB | wall, s | processor, s | MB/s a core | peak a process, MiB "
        "| disk, GB |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for one in run.stages:
        speed = f"{one.text_bytes / 1e6 / one.processor:.1f}" if one.text_bytes and one.processor else ""
        yield (
            f"| {one.name} | {one.documents:,} | {one.records_out:,} | {one.text_bytes / GB:.2f} | {one.wall:,.0f} | "
            f"{one.processor:,.0f} | {speed} | {one.peak_mib:,.0f} | {one.disk_bytes / GB:.2f} |"
        )
    wall, processor = (sum(getattr(one, name) for one in run.stages) for name in ("wall", "processor"))
    documents = f"{run.stages[0].documents:,} | {run.stages[-1].records_out:,}"
    yield (
        f"| **all** | {documents} | {run.bytes / GB:.2f} | {wall:,.0f} | {processor:,.0f} "
        f"| {run.bytes / 1e6 / processor:.1f} | {max(one.peak_mib for one in run.stages):,.0f} "
        f"| {max(one.disk_bytes for one in run.stages) / GB:.2f} |"
    )


def growth_table(runs: Sequence[RunCost]) -> Iterator[str]:
    """Processor time by size, and the most memory."""
    yield "| processor seconds a GB of the run | " + " | ".join(f"{run.bytes / GB:.2f} GB" for run in runs) + " |"
    yield "|---|" + "---|" * len(runs)
    for stages in zip(*(run.stages for run in runs), strict=True):
        cells = [f"{one.processor / run.bytes * GB:.1f}" for one, run in zip(stages, runs, strict=True)]
        yield f"| {stages[0].name} | {' | '.join(cells)} |"
    sums = [f"{sum(one.processor for one in run.stages) / run.bytes * GB:.1f}" for run in runs]
    yield f"| **all** | {' | '.join(sums)} |"
    peaks = [f"{max(one.peak_mib for one in run.stages):,.0f}" for run in runs]
    yield f"| peak a process, MiB | {' | '.join(peaks)} |"
    disks = [f"{max(one.disk_bytes for one in run.stages) / run.bytes:.2f}" for run in runs]
    yield f"| disk beside the text, bytes a byte | {' | '.join(disks)} |"


def section(runs: Sequence[RunCost], busy: float) -> list[str]:
    """The benchmark's part of docs/benchmarks.md; the largest run last."""
    run = runs[-1]
    kept = (
        "All stages keep their documents" if run.keep_documents == "all" else "Only the last stage keeps its documents"
    )
    planted = sum(map(Counter, run.planted.values()), Counter())
    kinds = ("exact", "near", "contaminated", "repeated", "short", "other_language")
    bad = sum(count for kind, count in planted.items() if kind.startswith("bad "))
    found = ", ".join(f"{planted[kind]:,} {kind}" for kind in kinds)
    return [
        "## A large run (`benchmarks/bench_data_run.py`)",
        "",
        machine_line(busy),
        "",
        f"{run.bytes / GB:.1f} GB of generated JSON Lines in English, Chinese and code, {run.text_disk / GB:.1f} GB on",
        f"the disk (a part compressed), {WORKERS} workers. Wall time is that of a machine that did other work beside.",
        f"{kept} (`keep_documents: {run.keep_documents}`).",
        "Disk: the most that stages and corpora took until the end of the stage, without the text itself.",
        "",
        *whole_table(run),
        "",
        f"All that was planted was found, and nothing else: {found}, {bad:,} bad records. The {run.tokens:,}",
        f"tokens of the corpora stand for the {planted['own_bytes']:,} bytes of the {planted['own']:,} documents",
        "that were generated once, each with its end: counted from vocabulary and .bin.",
        "",
        *growth_table(runs),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[0.1, 1.0], help="of text before compression")
    parser.add_argument("--folder", type=Path, required=True, help="where text, corpora and results go")
    parser.add_argument("--write", action="store_true", help="write the section of docs/benchmarks.md")
    parser.add_argument(
        "--keep-documents", choices=("all", "last"), default="all", help="last: a stage's go when the next is finished"
    )
    options = parser.parse_args()
    busy = 100 * os.getloadavg()[0] / (os.cpu_count() or 1)
    runs = []
    for gigabytes in sorted(options.gigabytes):
        keeps = "" if options.keep_documents == "all" else f"-{options.keep_documents}"
        result = options.folder / f"{gigabytes:g}{keeps}.json"
        run = stored(result)
        if run is None:
            folder = options.folder / f"{gigabytes:g}"
            shutil.rmtree(folder, ignore_errors=True)
            run = measure(gigabytes, folder, options.keep_documents)
            result.write_text(json.dumps(dataclasses.asdict(run)))
            shutil.rmtree(folder)
        runs.append(run)
    lines = section(runs, busy)
    print("\n".join(lines))
    if options.write:
        write_section("bench-data-run", lines)


if __name__ == "__main__":
    main()
