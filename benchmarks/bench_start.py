"""Start of a run to its first step on a corpus of 10^12 tokens against one of 10^7.

    python benchmarks/bench_start.py --write

Both corpora are holes in sparse files with their sidecars, and checksums where tokens are read. Runs of the tiny
preset alternate; each is a process of its own, timed from its launch to the line of its first step.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from results import write_section

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from qwen_megatron.data.pretraining.dataset import open_dataset  # noqa: E402
from tests.support.corpora import seal, write_sparse_corpus  # noqa: E402

SIZES = {"10^7 tokens": 10**7, "10^12 tokens": 10**12}
SEQ, BATCH, HELD_OUT, SEED = 256, 4, 4, 1234


def prepare(folder: Path, num_tokens: int) -> Path:
    """A sparse corpus that can give the first step's samples and those held out."""
    prefix = write_sparse_corpus(folder / str(num_tokens), num_tokens)
    dataset = open_dataset([str(prefix)], seq_length=SEQ, seed=SEED, eval_samples=HELD_OUT, vocab_size=1 << 17)
    # Two steps' worth: the loader reads ahead.
    for sample in [*dataset.eval_ids, *(dataset.train_id(number) for number in range(2 * BATCH))]:
        seal(prefix, sample.sample * SEQ, SEQ + 1)
    return prefix


def start_seconds(prefix: Path, directory: str) -> float:
    """From the launch of a process to its first step's line."""
    settings = [
        "model.preset=tiny",
        f"data.blend=[{prefix}]",
        f"data.eval_samples={HELD_OUT}",
        "data.num_workers=1",
        f"training.seed={SEED}",
        f"training.seq_length={SEQ}",
        f"training.global_batch_size={BATCH}",
        "training.train_iters=100000",
        "training.exit_iter=1",
        "logging.tensorboard=false",
        f"checkpoint.directory={directory}",
    ]
    command = [sys.executable, "-u", "-W", "ignore", "-m", "qwen_megatron", "pretrain", *settings]
    started = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step"):
                seconds = time.perf_counter() - started
                process.communicate()
                return seconds
        assert process.stderr is not None
        raise RuntimeError(f"the run ended without a step:\n{process.stderr.read()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3, help="starts on each corpus, in turn")
    parser.add_argument("--write", action="store_true", help="write the section of docs/benchmarks.md")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    times: dict[str, list[float]] = {name: [] for name in SIZES}
    with tempfile.TemporaryDirectory() as folder:
        prefixes = {name: prepare(Path(folder), size) for name, size in SIZES.items()}
        for number in range(options.rounds):
            for name, prefix in prefixes.items():
                times[name].append(start_seconds(prefix, f"{folder}/run {number} {name}"))
    small, large = (statistics.median(seconds) for seconds in times.values())
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d}, load {load:.1f} before the start. Launch to the first step, evaluation before",
        f"it; tiny preset, one process; sparse .bin files with sidecars; median of {options.rounds} starts in turn.",
        "",
        "| corpus | seconds | all |",
        "|---|---|---|",
        *(f"| {name} | {statistics.median(s):.2f} | {', '.join(f'{x:.2f}' for x in s)} |" for name, s in times.items()),
        "",
        f"Difference: **{large - small:+.2f} s** (bar: within 1 s).",
    ]
    print("\n".join(lines))
    if options.write:
        write_section("bench-start", ["## Start of a run (`make bench-train`)", "", *lines])


if __name__ == "__main__":
    main()
