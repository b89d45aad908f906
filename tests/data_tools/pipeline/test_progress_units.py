"""What the bars of a run count: documents or bytes of what is worked on, in every phase of every stage."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import orjson
import pytest

from data_tools.cli import main
from data_tools.engine import runner as runner_module
from data_tools.engine.document import read_documents
from data_tools.engine.executor import InProcessExecutor
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

    def __init__(self, title: str, unit: str, total: int) -> None:
        self.title, self.unit, self.total = title, unit, total
        self.done = 0

    def advance(self, amount: int) -> None:
        self.done += amount


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Bar]:
    """Those of a run, in order, without those that show nothing."""
    found: list[Bar] = []

    @contextmanager
    def bar(title: str, total: int, *, unit: str = BYTES) -> Iterator[Bar]:
        one = Bar(title, unit, total)
        if total:
            found.append(one)
        yield one
        assert one.done == total

    monkeypatch.setattr(runner_module, "progress_bar", bar)
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
