"""Small pipelines over a few hundred sentences: written, run, and what they leave behind."""

import random
from collections.abc import Callable
from pathlib import Path

import orjson

from data_tools.engine.executor import InProcessExecutor, ProcessExecutor
from data_tools.engine.runner import Share
from data_tools.pipeline.pipeline_file import load_pipeline
from data_tools.pipeline.run import RunSummary, run_pipeline

STAGES = """
  - kind: normalise
  - kind: exact_dedup
    bucket_documents: 100
"""
TOKENIZE = """
  - kind: tokenize
    tokens_in_memory: 3000
"""
WORDS = ("the", "of", "river", "stone", "quickly", "walked", "under", "bright", "morning", "people", "said", "that")


def english(number: int) -> str:
    chooser = random.Random(number)
    return " ".join(chooser.choices(WORDS, k=30)) + f" {number}."


def write_input(path: Path, texts: list[str], bad_after: int = 0) -> None:
    lines = [orjson.dumps({"text": text}) for text in texts]
    if bad_after:
        lines.insert(bad_after, b'{"text": broken')
    path.write_bytes(b"".join(line + b"\n" for line in lines))


def pipelines_in(folder: Path) -> Callable[..., Path]:
    """Writes pipeline files that read all .jsonl files of a folder."""

    def write(stages: str = STAGES + TOKENIZE, output: str = "out", split_bytes: int = 8000) -> Path:
        inputs = "".join(f"      - {{path: {path}, source: {path.stem}}}\n" for path in sorted(folder.glob("*.jsonl")))
        path = folder / f"{output}.yaml"
        path.write_text(
            f"output: {folder / output}\nstages:\n  - kind: read\n    split_bytes: {split_bytes}\n"
            f"    inputs:\n{inputs}{stages}"
        )
        return path

    return write


def run(path: Path, workers: int = 1, share: Share | None = None) -> RunSummary:
    executor = InProcessExecutor() if workers == 1 else ProcessExecutor(workers)
    try:
        return run_pipeline(load_pipeline(path), executor, share)
    finally:
        executor.close()


def contents(folder: Path) -> dict[str, bytes]:
    """Everything that must be equal: tokens, indices, shards; not times of writing."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix in (".bin", ".idx", ".crc", ".zst", ".jsonl")
    }
