"""Runs of the commands on a GPU and on the CPU, each in a process of its own: the shims of the CPU stay in theirs."""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.corpora import write_byte_corpus, write_formula_corpus
from tests.support.training import SMALL, rows

ROOT = Path(__file__).parents[2]
STEPS = 8
TORCH, ENGINE = "model.implementation=torch", "model.implementation=transformer_engine"
FP32, BF16 = "training.precision=fp32", "training.precision=bf16"
DETERMINISTIC = "training.deterministic=true"
# Of a recipe of several.
ONE_PROCESS = (
    "parallel.world_size=1",
    "parallel.tensor_model_parallel_size=1",
    "parallel.pipeline_model_parallel_size=1",
    "parallel.sequence_parallel=false",
)

needs_engine = pytest.mark.skipif(
    importlib.util.find_spec("transformer_engine") is None, reason="Transformer Engine is not installed"
)


@functools.cache
def folder() -> Path:
    """Of this session's runs."""
    return Path(tempfile.mkdtemp(prefix="qwen-megatron-gpu-"))


@functools.cache
def corpus() -> Path:
    return write_byte_corpus(folder() / "bytes", num_documents=40)


def command(*arguments: str, processes: int = 1) -> str:
    """The output of `qwen-megatron ...`, under torchrun for several processes; a failure shows it."""
    start = ["-m", "qwen_megatron"]
    if processes > 1:
        start = ["-m", "qwen_megatron.parallel.loopback", "--nproc-per-node", str(processes), *start]
    return module(*start, *arguments)


def module(*arguments: str) -> str:
    """The output of `python ...`; a failure shows it."""
    # fp32 products are not rounded to TF32: losses are compared to five digits.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "4", "NVIDIA_TF32_OVERRIDE": "0"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@functools.cache
def trained(*settings: str, name: str = "", processes: int = 1) -> tuple[Path, tuple[dict[str, Any], ...]]:
    """Folder and rows of a run of eight steps; one of the same settings is not made twice.

    Args:
        settings: After those of every test; without a platform among them, on the GPU.
        name: Of a folder that several runs share, one going on from the other.
        processes: Ranks.
    """
    directory = folder() / (name or f"run-{len(list(folder().iterdir()))}")
    platform = () if any(one.startswith("parallel.platform=") for one in settings) else ("parallel.platform=cuda",)
    run = (f"data.blend=[{corpus()}]", f"checkpoint.directory={directory}", f"training.train_iters={STEPS}")
    more = ("model.hidden_size=128", "model.num_attention_heads=4", "model.ffn_hidden_size=256", "model.num_layers=2")
    command("pretrain", *SMALL, *more, "data.eval_samples=0", *run, *platform, *settings, processes=processes)
    return directory, tuple(row for row in rows(directory) if "loss" in row)


def golden_steps(*settings: str) -> list[tuple[float, float]]:
    """Loss and gradient norm of the first steps of the demo's recipe on one process, on the corpus of its goldens."""
    formula = folder() / "formula"
    if not formula.with_suffix(".bin").exists():
        write_formula_corpus(formula, 200)
    directory = folder() / f"golden-{len(list(folder().iterdir()))}"
    run = (f"data.blend=[{formula}]", f"checkpoint.directory={directory}", "training.exit_iter=4")
    more = ("data.eval_samples=0", "logging.tensorboard=false", "parallel.platform=cuda")
    command("pretrain", "examples/demo.yaml", *ONE_PROCESS, *more, *run, *settings)
    return [(row["loss"], row["grad_norm"]) for row in rows(directory) if "loss" in row]


def losses(*settings: str, **options: Any) -> list[float]:
    return [row["loss"] for row in trained(*settings, **options)[1]]


def bits(*settings: str, **options: Any) -> list[str]:
    return [row["loss_hex"] for row in trained(*settings, **options)[1]]
