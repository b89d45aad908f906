"""Saving a model of 200 million parameters on two replicas: how long training waits, and what hashing costs.

Three ways take turns: in the foreground, in the foreground without hashing, in the background. Training is not running
meanwhile; what is measured is the time that the ranks spend in saving, the slower one counts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from results import write_section

ROOT = Path(__file__).resolve().parents[1]
MODEL = (
    "model.num_layers=12",
    "model.hidden_size=1024",
    "model.ffn_hidden_size=2816",
    "model.num_attention_heads=16",
    "model.vocab_size=45056",
    "model.seq_length=512",
    "model.tie_word_embeddings=true",
    "training.precision=bf16",
    "training.global_batch_size=2",
    "parallel.world_size=2",
)
WAYS = ("foreground", "foreground without hashing", "background")


class NoHash:
    """In place of sha256, to tell what it costs."""

    def update(self, data: Any, /) -> None:
        """Nothing."""

    def hexdigest(self) -> str:
        return "0" * 64


def measure_rank(directory: Path, rounds: int) -> None:
    """One rank: saves in turn and writes down the seconds it was held up."""
    import hashlib

    import torch
    import torch.distributed as dist

    from qwen_megatron.checkpoint.retention import Retention
    from qwen_megatron.checkpoint.save import Saver
    from qwen_megatron.config.load import load_config
    from qwen_megatron.config.resolve import resolve
    from qwen_megatron.parallel.groups import build_groups, destroy_groups, start_process_group
    from qwen_megatron.platforms import get_platform
    from qwen_megatron.train.job import Job, StepOutcome
    from qwen_megatron.train.run import Run
    from qwen_megatron.train.state import TrainState
    from qwen_megatron.train.trainable import MAIN, build_trainable

    class NothingToDo(Job):
        """A job of no data and no steps."""

        def num_steps(self, state: TrainState) -> int:
            return 0

        def samples_of(self, state: TrainState, steps: int) -> int:
            return 0

        def step(self, run: Run) -> StepOutcome:
            raise NotImplementedError

    torch.set_num_threads(1)
    config = resolve(load_config(None, [*MODEL, f"checkpoint.directory={directory}"]), 2)
    machine = get_platform("cpu")
    machine.prepare()
    groups = build_groups(device=start_process_group(machine, 600), timeout_seconds=600)
    trainable = build_trainable(config, groups, machine)
    # Allocates the moments.
    trainable.trained.load_state_dict(trainable.trained.state_dict())
    for state in trainable.trained.optimizer.state.values():
        state["exp_avg"].normal_()
        state["exp_avg_sq"].normal_()
    job = NothingToDo()
    job.config = config
    run = Run(
        job=job,
        directory=directory,
        groups=groups,
        platform=machine,
        timers=trainable.timers,
        trainables={MAIN: trainable},
        state=TrainState(),
    )
    savers = {
        name: Saver(
            asynchronous=name == "background",
            retention=Retention(1),
            new_digest=NoHash if "without" in name else hashlib.sha256,
        )
        for name in WAYS
    }
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        for name, saver in savers.items():
            run.state.iteration += 1
            os.sync()
            dist.barrier()
            held = timed(saver.save, run)
            while saver.pending is not None:
                time.sleep(0.2)
                # A rank that sleeps longer than the other is not held up by saving.
                dist.barrier()
                held += timed(saver.poll, run)
            slowest = torch.tensor([held], dtype=torch.float64)
            dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
            seconds[name].append(slowest.item())
    if groups.rank == 0:
        newest = directory / f"iter_{run.state.iteration:07d}"
        size = sum(path.stat().st_size for path in newest.iterdir())
        result = {"seconds": seconds, "bytes": size, "parameters": config.num_parameters}
        (directory / "result.json").write_text(json.dumps(result))
    destroy_groups()


def timed(work: Any, run: Any) -> float:
    started = time.perf_counter()
    work(run)
    return time.perf_counter() - started


def measure(rounds: int, parent: Path) -> dict[str, Any]:
    """Runs the two ranks and returns what they wrote down."""
    directory = Path(tempfile.mkdtemp(prefix="bench-save-", dir=parent))
    try:
        launcher = [sys.executable, "-W", "ignore", "-m", "qwen_megatron.parallel.loopback"]
        launcher += ["--nproc-per-node", "2"]
        arguments = ["--rank-of", str(directory), "--rounds", str(rounds)]
        subprocess.run(
            [*launcher, __file__, *arguments], check=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        return json.loads((directory / "result.json").read_text())
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def section(result: dict[str, Any], load: float) -> list[str]:
    """The benchmark's part of docs/benchmarks.md."""
    import torch

    seconds = result["seconds"]
    rounds = len(seconds[WAYS[0]])
    # The first save in the background touches its memory for the first time.
    first, later = seconds["background"][0], seconds["background"][1:]
    median = {name: statistics.median(values) for name, values in seconds.items()} | {
        "background": statistics.median(later)
    }
    lines = [
        "## Saving (`make bench-save`)",
        "",
        (
            f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {os.cpu_count()} cores, load average {load:.1f} "
            f"at the start, torch {torch.__version__}."
        ),
        (
            f"{result['parameters']:,} parameters in bf16 with fp32 masters and moments, two replicas, "
            f"{result['bytes'] / 1e9:.2f} GB; {rounds} rounds."
        ),
        "Seconds that the slower rank is held up, without training beside it.",
        "",
        "| | median s | lowest | highest |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {median[name]:.2f} | {min(values):.2f} | {max(values):.2f} |"
        for name, values in (seconds | {"background": later}).items()
    ]
    ratios = [b / f for b, f in zip(seconds["background"][1:], seconds["foreground"][1:], strict=True)]
    costs = [f / n - 1 for f, n in zip(seconds["foreground"], seconds["foreground without hashing"], strict=True)]
    spread = f"{statistics.median(ratios):.3f} | {min(ratios):.3f} | {max(ratios):.3f}"
    lines += [
        f"| background, first save of a run | {first:.2f} | | |",
        "",
        "| ratio | median | lowest | highest | bar |",
        "|---|---|---|---|---|",
        f"| background / foreground | {spread} | <= 0.2 |",
        f"| cost of hashing | {statistics.median(costs):+.1%} | {min(costs):+.1%} | {max(costs):+.1%} | <= 10 % |",
    ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=4, help="rounds of the three ways")
    parser.add_argument("--directory", type=Path, default=ROOT, help="where to write; tells which disk is measured")
    parser.add_argument("--write", action="store_true", help="write the section of docs/benchmarks.md")
    parser.add_argument("--rank-of", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank_of is not None:
        measure_rank(options.rank_of, options.rounds)
        return
    load = os.getloadavg()[0]
    lines = section(measure(options.rounds, options.directory), load)
    print("\n".join(lines))
    if options.write:
        write_section("bench-save", lines)


if __name__ == "__main__":
    main()
