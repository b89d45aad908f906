"""Losses of the demo's recipe, bit for bit where bits can be asked for.

The bits depend on the kernels that torch and its libraries choose for a processor, so a file of golden losses says what
it was made with. Where this machine is the same, every bit must be; elsewhere the losses must lie within a tolerance.
After a change that is meant to change them, write the file again, in a commit of its own that says why:

    OMP_NUM_THREADS=1 python -m tests.train.test_golden
"""

from __future__ import annotations

import json
import platform
import re
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest
import torch

from tests.support.corpora import write_formula_corpus
from tests.support.ranks import RankPool
from tests.support.training import Steps, train_on_ranks

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "examples" / "demo.yaml"
FILE = ROOT / "tests" / "golden" / "demo.txt"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A way to run the recipe.

    Attributes:
        world_size: Processes.
        overrides: Settings.
        tolerances: Relative difference of loss and gradient norm on another kind of machine.
    """

    world_size: int
    overrides: tuple[str, ...]
    tolerances: tuple[float, float]


JOBS = {
    "bf16, TP2 with sequence parallelism": Job(
        world_size=2,
        overrides=("parallel.world_size=2", "parallel.pipeline_model_parallel_size=1"),
        tolerances=(1e-3, 2e-2),
    ),
    "fp32, one process": Job(
        world_size=1,
        overrides=(
            "training.precision=fp32",
            "parallel.world_size=1",
            "parallel.tensor_model_parallel_size=1",
            "parallel.pipeline_model_parallel_size=1",
            "parallel.sequence_parallel=false",
        ),
        tolerances=(1e-5, 1e-4),
    ),
}


def measure(ranks: RankPool, job: Job, folder: Path) -> Steps:
    """Three steps of the recipe on a corpus made from a formula, and on a quarter of its context.

    The second step follows an update, the third one that began with moments; test_schedule.py has the rates. The whole
    context would only ask the same kernels for four times as many rows of 152k logits.
    """
    corpus = write_formula_corpus(folder / f"formula-{job.world_size}", 200)
    overrides = [f"data.blend=[{corpus}]", "training.exit_iter=3", "training.seq_length=64", *job.overrides]
    return train_on_ranks(ranks, job.world_size, overrides, str(RECIPE))


def reproduce_line() -> dict[str, str | int]:
    """What the bits depend on besides the code: versions, and the processor, which kernels are chosen by."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    names = ("vendor_id", "cpu family", "model")
    found = [re.search(rf"^{name}\s*: (.+)$", info, re.MULTILINE) for name in names]
    return {
        "torch": metadata.version("torch"),
        "megatron-core": metadata.version("megatron-core"),
        "threads": 1,
        "machine": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "processor": " ".join(match[1] for match in found if match),
    }


def as_text(losses: dict[str, Steps]) -> str:
    """The golden file: hexadecimal floats, and decimal ones for people."""
    lines = [
        "# Loss and gradient norm of the first steps of examples/demo.yaml; see tests/train/test_golden.py.",
        f"# made with: {json.dumps(reproduce_line())}",
    ]
    for name, steps in losses.items():
        lines += ["", f"[{name}]"]
        for number, (_, loss, norm) in enumerate(steps, start=1):
            lines.append(f"{number} {loss.hex():>22} {norm.hex():>22}  # {loss:.6f} {norm:.6f}")
    return "\n".join(lines) + "\n"


def read_golden() -> tuple[dict[str, str | int], dict[str, list[tuple[float, float]]]]:
    """The reproduce line and the losses by job."""
    text = FILE.read_text(encoding="utf-8")
    made_with = re.search(r"^# made with: (.+)$", text, re.MULTILINE)
    assert made_with is not None
    losses: dict[str, list[tuple[float, float]]] = {}
    for line in text.splitlines():
        if line.startswith("["):
            steps = losses.setdefault(line[1:-1], [])
        elif line and not line.startswith("#"):
            _, loss, norm = line.partition("#")[0].split()
            steps.append((float.fromhex(loss), float.fromhex(norm)))
    return json.loads(made_with[1]), losses


@pytest.mark.parametrize("name", JOBS)
def test_the_recipe_gives_its_golden_losses(name: str, ranks: RankPool, tmp_path: Path) -> None:
    made_with, golden = read_golden()
    job = JOBS[name]
    found = [(loss, norm) for _, loss, norm in measure(ranks, job, tmp_path)]
    assert len(found) == len(golden[name]) == 3
    if made_with == reproduce_line():
        assert [(loss.hex(), norm.hex()) for loss, norm in found] == [(x.hex(), y.hex()) for x, y in golden[name]]
    for step, (values, expected) in enumerate(zip(found, golden[name], strict=True), start=1):
        for value, reference, tolerance in zip(values, expected, job.tolerances, strict=True):
            assert value == pytest.approx(reference, rel=tolerance), f"step {step}"


def write() -> None:
    """Makes the golden file anew."""
    ranks = RankPool()
    try:
        with tempfile.TemporaryDirectory() as folder:
            losses = {name: measure(ranks, job, Path(folder)) for name, job in JOBS.items()}
    finally:
        ranks.close()
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(as_text(losses), encoding="utf-8")


if __name__ == "__main__":
    write()
