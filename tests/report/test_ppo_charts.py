"""What PPO measures has charts of its own; other runs have none of them."""

from __future__ import annotations

import json
from pathlib import Path

from qwen_megatron.report.charts import charts
from qwen_megatron.report.run_files import read_run

NAMES = {"reward", "kl", "entropy", "clip_share", "response_length", "value_loss", "rollout_seconds"}


def run_with(folder: Path, *measured: dict[str, float]) -> set[str]:
    folder.mkdir()
    lines = [json.dumps({"step": step, "loss": 0.1, **row}) for step, row in enumerate(measured, start=1)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return {chart.name for chart in charts([read_run(folder)], ["run"])}


def test_charts_of_what_a_run_has_measured(tmp_path: Path) -> None:
    warm_up = dict.fromkeys(NAMES - {"clip_share"}, 0.5)
    assert run_with(tmp_path / "ppo", warm_up, {**warm_up, "clip_share": 0.25}) >= NAMES
    assert not run_with(tmp_path / "other", {}, {}) & NAMES


def test_the_chart_of_losses_says_what_they_are(tmp_path: Path) -> None:
    titles = []
    for name, start in (("ppo", {"loss_title": "Loss of the policy"}), ("older", {})):
        run_with(tmp_path / name, {}, {})
        (tmp_path / name / "starts.jsonl").write_text(json.dumps({"step": 0, **start}) + "\n")
        titles.append(charts([read_run(tmp_path / name)], ["run"])[0].title)
    both = charts([read_run(tmp_path / name) for name in ("ppo", "older")], ["ppo", "older"])[0].title
    assert (titles, both) == (["Loss of the policy", "Loss, nats a token"], "Loss")
