"""A deduplication is killed at seeded points, with all its processes, and started again: not one byte changes."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest

from data_tools.engine.executor import InProcessExecutor
from data_tools.pipeline.pipeline_file import load_pipeline
from data_tools.pipeline.run import RunSummary, run_pipeline

NUM_DOCUMENTS = 240


def texts() -> list[str]:
    """Originals, exact copies in other letters, and copies with a word changed."""
    out = []
    for number in range(NUM_DOCUMENTS):
        words = [f"w{random.Random(1000 * (number % 150) + place).randrange(10**6)}" for place in range(60)]
        if number >= 200:
            words[number % 60] = "changed"
        out.append(" ".join(words).upper() if number % 3 == 0 else " ".join(words))
    return out


def write_pipeline(folder: Path, output: str) -> Path:
    path = folder / f"{output}.yaml"
    path.write_text(
        f"output: {folder / output}\nstages:\n"
        f"  - {{kind: read, split_bytes: 16000, inputs: [{{path: {folder}/web.jsonl, source: web}}]}}\n"
        "  - {kind: exact_dedup, bucket_documents: 80}\n"
        "  - {kind: fuzzy_dedup, bands: 6, rows: 4, min_jaccard: 0.5}\n"
    )
    return path


def finish(path: Path) -> RunSummary:
    return run_pipeline(load_pipeline(path), InProcessExecutor())


def checksums(output: Path) -> dict[str, str]:
    """SHA-256 of every file but the ones that hold times of writing."""
    return {
        str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(output.rglob("*"))
        if path.is_file() and path.suffix not in (".json", ".lock")
    }


def num_finished(output: Path) -> int:
    """Manifests of tasks so far."""
    return sum(name.endswith(".manifest.json") for _, _, names in os.walk(output) for name in names)


def kill(path: Path, output: Path, num_manifests: int, seconds: float) -> str:
    """Starts the run, kills its process group once so many tasks are finished; returns what was going on."""
    process = subprocess.Popen(
        [sys.executable, "-m", "data_tools", "run", str(path), "--workers", "2"],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while num_finished(output) < num_manifests:
            assert process.poll() is None, "it ended before the kill"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(seconds)
        assert process.poll() is None, "it ended before the kill"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
    newest = max(output.rglob("*"), key=lambda one: one.lstat().st_mtime_ns, default=output)
    return str(newest.relative_to(output))


@pytest.mark.parametrize("num_points", [3, pytest.param(24, marks=pytest.mark.faults)])
def test_killed_at_seeded_points(tmp_path: Path, num_points: int) -> None:
    lines = [orjson.dumps({"text": text}) for text in texts()]
    (tmp_path / "web.jsonl").write_bytes(b"\n".join([*lines[:90], b"broken", *lines[90:]]))
    path = write_pipeline(tmp_path, "undisturbed")
    whole = finish(path)
    assert whole.stages[-1]["records_out"] < whole.stages[-2]["records_out"] < NUM_DOCUMENTS
    expected = checksums(tmp_path / "undisturbed")
    num_tasks = len(list((tmp_path / "undisturbed").rglob("*.manifest.json")))
    drawn = random.Random(num_points)
    # One point in each of equal stretches of the run, short of its very end.
    last = num_tasks - 16
    points = [
        drawn.randrange(number * last // num_points, (number + 1) * last // num_points) for number in range(num_points)
    ]
    rows = []
    for number, point in enumerate(points):
        output = f"killed-{number}"
        path = write_pipeline(tmp_path, output)
        newest = kill(path, tmp_path / output, point, drawn.random() * 0.01)
        again = finish(path)
        assert again.stages == whole.stages
        assert again.tasks_skipped >= point
        assert checksums(tmp_path / output) == expected, f"killed after {point} of {num_tasks} tasks, at {newest}"
        rows.append(f"{point:>4} of {num_tasks}  {again.tasks_skipped:>4} kept  same  {newest}")
    print("\ntasks finished, found again, checksums, newest file when killed:", *rows, sep="\n")
