"""Where the time of a PPO step goes: medians over the steps of a run that trained both models.

make demo-align && python benchmarks/bench_ppo.py demo/align/ppo --write
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import yaml
from results import machine_line, write_section

PARTS = ("rollout_seconds", "judging_seconds", "learning_seconds")


def steps_of(run: Path) -> list[dict[str, Any]]:
    """Rows of the steps in which policy and value model were trained, the first of them left out."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    found = [row for row in rows if "rollout_seconds" in row and row.get("learning_rate")][1:]
    if not found:
        raise SystemExit(f"{run}: no step of PPO that trained its policy; let it run beyond ppo.value_warmup_iters")
    return found


def section(run: Path) -> list[str]:
    """The section of docs/benchmarks.md."""
    steps = steps_of(run)
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    parallel, training, ppo = config["parallel"], config["training"], config["ppo"]
    seconds = {part: statistics.median(step[part] for step in steps) for part in PARTS}
    total = sum(seconds.values())
    responses = training["global_batch_size"] * ppo["responses_per_query"]
    length = statistics.median(step["response_length"] for step in steps)
    layout = " x ".join(
        f"{name}{parallel[key]}"
        for name, key in (("TP", "tensor_model_parallel_size"), ("PP", "pipeline_model_parallel_size"))
    )
    described = (
        f"`{run}`: {parallel['world_size']} processes, {layout}; {responses} responses of {length:.0f} tokens a step, "
        f"medians over {len(steps)} steps."
    )
    lines = [
        "## A step of PPO by part",
        "",
        machine_line(0.0),
        described,
        "",
        "| part | seconds | share |",
        "|---|---|---|",
    ]
    lines += [
        f"| {part.removesuffix('_seconds')} | {seconds[part]:.2f} | {seconds[part] / total:.0%} |" for part in PARTS
    ]
    return [*lines, f"| together | {total:.2f} | {responses * length / total:.0f} response tokens a second |"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--write", action="store_true", help="write the section of docs/benchmarks.md")
    args = parser.parse_args()
    lines = section(args.run)
    print("\n".join(lines))
    if args.write:
        write_section("ppo", lines)


if __name__ == "__main__":
    main()
