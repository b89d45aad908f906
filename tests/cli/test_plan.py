"""`qwen-megatron plan`: the table, JSON for scripts, the page, a dry run, and what is wrong."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qwen_megatron.cli.main import main

SMALL = ["recipe:demo", "model.vocab_size=301", "training.global_batch_size=16"]
PLAN = ["plan", "recipe:qwen-7b", "--gpus", "16", "--gpu", "h100-80gb"]


def printed(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> str:
    assert main(list(arguments)) == status
    return capsys.readouterr().out


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(printed(capsys, *arguments, "--json"))
    return found


def test_json_has_the_best_layouts_first_with_what_pretrain_takes(capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, *PLAN, "--top", "3")
    layouts = found["layouts"]
    assert len(layouts) == 3
    assert found["fitting"] > 3
    assert [layout["step_seconds"] for layout in layouts] == sorted(layout["step_seconds"] for layout in layouts)
    best = layouts[0]
    assert sum(best["time_by_part"].values()) == pytest.approx(best["step_seconds"])
    assert len(best["memory_by_rank"]) == best["layout"]["pipeline"]
    assert max(memory["total"] for memory in best["memory_by_rank"]) == best["largest_memory_bytes"]
    assert best["largest_memory_bytes"] <= found["usable_memory_bytes"]
    shown = json.loads(printed(capsys, "show-config", "recipe:qwen-7b", *best["overrides"], "--json"))
    assert shown["derived"]["world_size"] == 16
    assert shown["derived"]["data_parallel_size"] == best["layout"]["data"]
    assert best["days"] * best["tokens_per_day"] == pytest.approx(found["tokens"])


def test_the_table_says_what_fits_what_limits_and_what_is_not_counted(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, *PLAN, "--top", "4")
    assert len(re.findall(r"^ *[1-4]  +\d", text, re.MULTILINE)) == 4
    for part in ("layouts fit into", "limited by", "one stop in", "to run it:", "not counted:", "headroom"):
        assert part in text


def test_the_price_and_the_stops_are_those_given(capsys: pytest.CaptureFixture[str]) -> None:
    free = ("--gpu-hours-between-failures", "1e12", "--price", "2", "--top", "1")
    found = planned(capsys, *PLAN, *free)
    best = found["layouts"][0]
    assert found["failures"]["goodput"] == pytest.approx(1, abs=1e-3)
    assert best["cost"] == pytest.approx(best["days"] * 24 * 16 * 2, rel=1e-3)
    often = planned(capsys, *PLAN, "--gpu-hours-between-failures", "40", "--save-seconds", "60", "--price", "2")
    assert often["failures"]["goodput"] < 0.9
    assert often["layouts"][0]["cost"] > 1.1 * best["cost"]


def test_a_run_that_counts_epochs_has_no_days(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    epochs = ("plan", "model.preset=qwen-7b", "training.train_epochs=2", "--gpus", "8")
    found = planned(capsys, *epochs, "--html", str(tmp_path / "plan.html"))
    assert found["tokens"] is found["layouts"][0]["days"] is found["layouts"][0]["cost"] is None
    assert "2 epochs in all" in printed(capsys, *epochs)


def test_where_nothing_fits_it_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "plan", "recipe:qwen-72b", "--gpus", "8", status=1)
    assert "none fits" in text
    assert re.search(r"\d GiB a GPU are missing: use more GPUs", text)


def test_a_dry_run_confirms_the_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, "plan", *SMALL, "--gpus", "4", "--dry-run", "--rank", "3", "--microbatches", "1")
    memory = found["memory_bytes"]
    # 2 MB of it, a buffer of the CPU, are most of a model so small.
    assert memory["model"] == pytest.approx(memory["dry_run"], rel=0.1)
    assert found["flops"]["model"] == found["flops"]["dry_run"] > 0
    assert found["sent_bytes"]
    assert all(size["model"] == size["dry_run"] for size in found["sent_bytes"].values())


def test_the_page_stands_alone_and_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.html"
    printed(capsys, "plan", "recipe:qwen-72b", "checkpoint.directory='<b>'", "--gpus", "512", "--html", str(path))
    page = path.read_text(encoding="utf-8")
    assert "<script" not in page
    assert "http://" not in page.replace("http-equiv", "")
    assert "<b>" not in page
    for heading in ("Memory of a rank", "Time of a step", "Pipeline", "Layouts", "Not counted"):
        assert heading in page
    assert page.count("<svg") == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "recipe:qwen-7b"], "--gpus: is needed"),
        (["plan", "recipe:qwen-7b", "--gpus", "8", "--gpu", "h100"], "the closest one is h100-80gb"),
        ([*PLAN, "training.seq_lenght=4096"], "the closest known one is training.seq_length"),
        ([*PLAN, "--dry-run", "--rank", "16"], "--rank 16: must lie between 0 and 15"),
        ([*PLAN, "parallel.tensor_model_parallel_size=3"], "no layout"),
        (["plan", "reward", "recipe:reward-7b", "--gpus", "8", "--dry-run"], "runs jobs of one language model"),
    ],
)
def test_what_is_wrong_is_said(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_search_imports_no_torch() -> None:
    code = (
        "import sys; from qwen_megatron.cli.main import main; "
        "assert main(['plan', 'recipe:qwen-7b', '--gpus', '8']) == 0; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
