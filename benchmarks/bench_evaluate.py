"""lm-evaluation-harness on 200 items of a local task: our adapter against lm-eval's own `hf` model, same weights.

    python benchmarks/bench_evaluate.py --write

A random model of bytes, in fp32: with Qwen's vocabulary most of the time would go to the logits of every position,
which hf computes and we do not. Both are loaded once; whole evaluations alternate, and their scores are compared item
by item. Letters: four choices of one token each; words: four choices of one to three words.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from results import write_section

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore")

import datasets  # noqa: E402
import torch  # noqa: E402
from lm_eval import simple_evaluate  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from qwen_megatron.evaluation.harness import HarnessModel  # noqa: E402
from qwen_megatron.evaluation.language_model import GeneratorModel, TextModel  # noqa: E402
from qwen_megatron.inference.opening import Opening, open_generator  # noqa: E402
from tests.evaluation.byte_model import MODEL as BYTES  # noqa: E402
from tests.evaluation.byte_model import write_byte_model, write_tasks  # noqa: E402

LENGTH, BATCH, WORDS = 512, 16, (10, 25)
MODEL = dataclasses.replace(
    BYTES,
    num_layers=3,
    hidden_size=256,
    ffn_hidden_size=704,
    num_attention_heads=8,
    num_query_groups=8,
    kv_channels=32,
    seq_length=LENGTH,
)
TASKS: dict[str, tuple[str, ...]] = {"letters": ("A", "B", "C", "D"), "words": ()}


def answers(found: dict[str, Any]) -> list[list[float]]:
    """Log-probabilities of the choices of every item."""
    return [[pair[0] for pair in sample["filtered_resps"]] for sample in found["samples"]["our_choice"]]


def compared(ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[float, float]:
    """The accuracy, which must be equal, and the largest difference of a log-probability."""
    scores = [found["results"]["our_choice"]["acc,none"] for found in (ours, theirs)]
    if scores[0] != scores[1]:
        raise RuntimeError(f"scores differ: {scores}")
    pairs = zip(answers(ours), answers(theirs), strict=True)
    return scores[0], max(abs(a - b) for one, other in pairs for a, b in zip(one, other, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3, help="evaluations of each, in turn")
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--write", action="store_true", help="write the section of docs/benchmarks.md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.disable(logging.WARNING)
    load = os.getloadavg()[0]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder, "cache")
        hf = write_byte_model(Path(folder), MODEL)
        theirs = HFLM(pretrained=str(hf), dtype="float32", device="cpu", batch_size=BATCH, max_length=LENGTH)
        with open_generator(hf, Opening(tensor_size=1)) as generator:
            found = GeneratorModel(generator)
            ours = HarnessModel(TextModel(found, found.vocabulary, LENGTH))
            for name, choices in TASKS.items():
                tasks = Path(folder, name)
                tasks.mkdir()
                write_tasks(tasks, options.items, WORDS, choices)
                rows.append(compare(name, ours, theirs, tasks, options.rounds))
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d}, load {load:.1f} before the start, {options.threads} threads, fp32.",
        f"{options.items} items of a local task, prompts of {WORDS[0]} to {WORDS[1]} words in bytes; random model of",
        f"{MODEL.num_layers} layers, width {MODEL.hidden_size}; lm-eval's hf with batches of {BATCH}; median of",
        f"{options.rounds} evaluations in turn, models loaded before; lm-eval's own work is in both. Bar: at",
        "least 1.0.",
        "",
        "| choices | ours, s | lm-eval's hf, s | ratio | accuracy of both | largest difference, nats |",
        "|---|---|---|---|---|---|",
        *rows,
    ]
    print("\n".join(lines))
    if options.write:
        heading = "## lm-evaluation-harness (`python benchmarks/bench_evaluate.py --write`)"
        write_section("bench-evaluate", [heading, "", *lines])


def compare(name: str, ours: HarnessModel, theirs: Any, tasks: Path, rounds: int) -> str:
    """A row of the table."""
    manager = TaskManager(include_path=str(tasks), include_defaults=False)

    def run(model: Any) -> dict[str, Any]:
        found = simple_evaluate(model=model, tasks=["our_choice"], task_manager=manager, bootstrap_iters=0)
        return dict(found or {})

    first = {"ours": run(ours), "theirs": run(theirs)}
    accuracy, difference = compared(first["ours"], first["theirs"])
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(rounds):
        for who, model in (("ours", ours), ("theirs", theirs)):
            started = time.perf_counter()
            run(model)
            times[who].append(time.perf_counter() - started)
    fast, slow = statistics.median(times["ours"]), statistics.median(times["theirs"])
    return f"| {name} | {fast:.2f} | {slow:.2f} | **{slow / fast:.2f}** | {accuracy:.3f} | {difference:.1e} |"


if __name__ == "__main__":
    main()
