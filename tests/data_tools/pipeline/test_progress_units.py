"""What the bars of a run count: documents or bytes of what is worked on, in every phase of every stage."""

import gzip
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import ANY

import numpy as np
import orjson
import pyarrow
import pyarrow.parquet
import pytest

from data_tools.cli import main
from data_tools.engine import task_bar
from data_tools.engine.document import read_documents
from data_tools.engine.executor import InProcessExecutor, UnderWay
from data_tools.engine.task import Manifest, Task
from data_tools.io import work_done
from data_tools.io.progress import BYTES
from data_tools.pipeline.pipeline_file import load_pipeline
from data_tools.pipeline.run import run_pipeline

DOCUMENTS = "documents"
NUM = 60
STAGES = """\
  - {kind: exact_dedup, bucket_documents: 20}
  - {kind: fuzzy_dedup, bands: 6, rows: 4, min_jaccard: 0.5, bucket_documents: 8}
  - {kind: decontaminate, benchmarks: [{name: exam, path: FOLDER/exam.jsonl}]}
  - {kind: tokenize, tokens_in_memory: 400}
"""


class Bar:
    """A bar that was shown."""

    def __init__(self, title: str, unit: str, total: int, begun: int) -> None:
        self.title, self.unit, self.total, self.begun = title, unit, total, begun
        self.done = begun
        self.steps = 0

    def advance(self, amount: int) -> None:
        assert amount >= 0
        self.done += amount
        self.steps += 1
        assert self.done <= self.total


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Bar]:
    """Those of a run, in order, without those that show nothing."""
    found: list[Bar] = []

    @contextmanager
    def bar(title: str, total: int, *, unit: str = BYTES, begun: int = 0) -> Iterator[Bar]:
        one = Bar(title, unit, total, begun)
        if total > begun:
            found.append(one)
        yield one
        assert one.done == max(total, begun)

    monkeypatch.setattr(task_bar, "progress_bar", bar)
    return found


def text(number: int) -> str:
    generator = np.random.default_rng(number % 50)
    return " ".join(f"w{word}" for word in generator.integers(0, 10**6, 40)) + (" changed" if number >= 50 else "")


def size_of(path: Path, pattern: str) -> int:
    return sum(one.stat().st_size for one in path.glob(pattern))


def test_every_phase_counts_what_it_works_on(tmp_path: Path, bars: list[Bar]) -> None:
    texts = [*map(text, range(NUM)), text(3), text(4)]
    source = tmp_path / "web.jsonl"
    source.write_bytes(b"\n".join(orjson.dumps({"text": one}) for one in texts))
    # Many times as long as all documents: what every task reads besides is not what it works on.
    (tmp_path / "exam.jsonl").write_bytes(
        b"\n".join(orjson.dumps({"text": f"question {n} has nothing to do with it"}) for n in range(2000))
    )
    path = tmp_path / "p.yaml"
    path.write_text(
        f"output: {tmp_path}/out\nstages:\n"
        f"  - {{kind: read, split_bytes: 4000, inputs: [{{path: {source}, source: web}}]}}\n"
        + STAGES.replace("FOLDER", str(tmp_path))
    )
    summary = run_pipeline(load_pipeline(path), InProcessExecutor())
    first, exact, fuzzy, clean = (stage["records_out"] for stage in summary.stages[:4])
    assert (first, exact, fuzzy, clean) == (62, 60, 50, 50)
    out = tmp_path / "out/stages"
    num_tokens = summary.stages[4]["tokens"]["web"]
    shards = sorted((out / "04-decontaminate").glob("part-??????.jsonl.zst"))
    text_bytes = sum(len(one.text) for shard in shards for one in read_documents(shard))
    shown = [(bar.title, bar.unit, bar.total) for bar in bars]
    hashes, bands = size_of(out / "02-exact_dedup/hashes", "*.hashes"), size_of(out / "03-fuzzy_dedup", "*/*.bands")
    assert hashes == 48 * first
    assert shown[:4] == [
        ("read", BYTES, source.stat().st_size),
        ("exact_dedup", DOCUMENTS, first),
        ("exact_dedup", BYTES, hashes // 4 * 4),
        ("exact_dedup", DOCUMENTS, first),
    ]
    in_fuzzy = [one for one in shown if one[0] == "fuzzy_dedup"]
    num_buckets = 6 * 8
    assert in_fuzzy[0] == ("fuzzy_dedup", DOCUMENTS, exact)
    assert in_fuzzy[1] == ("fuzzy_dedup", BYTES, bands // num_buckets * num_buckets)
    assert in_fuzzy[-1] == ("fuzzy_dedup", DOCUMENTS, exact)
    assert {unit for _, unit, _ in in_fuzzy[2:-1]} == {BYTES}
    # Shingles of candidates: the shards are read.
    assert in_fuzzy[3][2] == size_of(out / "02-exact_dedup", "part-??????.jsonl.zst")
    assert shown[4 + len(in_fuzzy) :] == [
        ("decontaminate", DOCUMENTS, fuzzy),
        ("tokenize", BYTES, text_bytes),
        ("tokenize", BYTES, 4 * num_tokens),
        ("tokenize", DOCUMENTS, clean),
    ]


def test_what_is_done_has_no_bar(tmp_path: Path, bars: list[Bar]) -> None:
    (tmp_path / "a.jsonl").write_bytes(orjson.dumps({"text": text(1)}))
    arguments = ["stage", "exact_dedup", str(tmp_path / "a.jsonl"), "--output", str(tmp_path / "out"), "--workers", "1"]
    assert main(arguments) == 0
    assert len(bars) == 4
    assert main(arguments) == 0
    assert len(bars) == 4


def distinct(number: int) -> str:
    return " ".join(f"w{(number * 40 + place) * 7919 % 1000003}" for place in range(40))


class Shares(InProcessExecutor):
    """Keeps what is told of tasks.

    Attributes:
        told: operation and path of a task -> the shares of it.
    """

    def __init__(self) -> None:
        self.told: dict[tuple[str, str], list[float]] = {}

    def run(self, tasks: Sequence[Task], under_way: UnderWay | None = None) -> Iterator[Manifest]:
        keys = {task.name: (task.operation, f"{task.folder}/{task.name}") for task in tasks}

        def told(name: str, share: float) -> None:
            self.told.setdefault(keys[name], []).append(share)
            if under_way is not None:
                under_way(name, share)

        return super().run(tasks, told)


def test_tasks_tell_how_far_they_are(tmp_path: Path, bars: list[Bar], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each thing that is read or written once, in the unit of the bar: all of them together are the whole task."""
    monkeypatch.setattr(work_done, "_TELL_SECONDS", 0.0)
    lines = b"".join(orjson.dumps({"text": one}) + b"\n" for one in map(distinct, range(9000)))
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.replace(b" w", b" v"), 1))
    texts = [distinct(number) + " changed" for number in range(8900, 15000)]
    table = pyarrow.table({"text": texts, "other": [distinct(number + 20000) for number in range(len(texts))]})
    pyarrow.parquet.write_table(table, tmp_path / "c.parquet")
    path = tmp_path / "p.yaml"
    (tmp_path / "exam.jsonl").write_bytes(
        b"".join(orjson.dumps({"text": distinct(n + 50000)}) + b"\n" for n in range(3000))
    )
    inputs = ", ".join(
        f"{{path: {tmp_path}/{name}, source: s{number}}}"
        for number, name in enumerate(("a.jsonl", "b.jsonl.gz", "c.parquet"))
    )
    path.write_text(
        f"output: {tmp_path}/out\nstages:\n  - {{kind: read, split_bytes: 2000000, inputs: [{inputs}]}}\n"
        + STAGES.replace("FOLDER", str(tmp_path))
        .replace("bucket_documents: 8", "bucket_documents: 80000")
        .replace("tokens_in_memory: 400", "tokens_in_memory: 400000")
    )
    executor = Shares()
    run_pipeline(load_pipeline(path), executor)
    told: dict[str, list[list[float]]] = {}
    for (operation, _), shares in executor.told.items():
        told.setdefault(operation, []).append(shares)
    whole = {
        *("read", "exact_dedup_hash", "exact_dedup_apply", "fuzzy_sign", "fuzzy_apply", "decontaminate"),
        *("tokenize_encode", "tokenize_bucket"),
    }
    assert {operation: (min(map(max, tasks)), max(map(max, tasks))) for operation, tasks in told.items()} == {
        **{operation: (pytest.approx(1, abs=2e-3), pytest.approx(1, abs=0.2)) for operation in whole},
        # Reads a shard, and from its other input no more than it needs.
        "fuzzy_shingles": (ANY, ANY),
    }
    assert all(shares == sorted(shares) for tasks in told.values() for shares in tasks)
    for operation in ("read", "exact_dedup_hash", "decontaminate"):
        assert any(len(shares) > 2 for shares in told[operation])
    reading = next(bar for bar in bars if bar.title == "read")
    assert reading.steps > 6


def test_a_resumed_bar_begins_where_it_was(tmp_path: Path, bars: list[Bar]) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(orjson.dumps({"text": text(number)}) for number in range(NUM)))
    path = tmp_path / "p.yaml"
    path.write_text(
        f"output: {tmp_path}/out\nstages:\n"
        f"  - {{kind: read, split_bytes: 4000, inputs: [{{path: {tmp_path}/a.jsonl, source: web}}]}}\n"
        "  - kind: normalise\n"
    )
    run_pipeline(load_pipeline(path), InProcessExecutor())
    again = tmp_path / "out/stages/02-normalise/part-000001.manifest.json"
    documents = orjson.loads(again.read_bytes())["records_in"]
    again.unlink()
    bars.clear()
    run_pipeline(load_pipeline(path), InProcessExecutor())
    ((bar),) = bars
    assert (bar.title, bar.unit, bar.begun, bar.total) == ("normalise", DOCUMENTS, NUM - documents, NUM)
