"""The page about a run: what it shows, whatever stands in the files."""

from __future__ import annotations

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from qwen_megatron.cli.main import main
from qwen_megatron.errors import ConfigError
from qwen_megatron.report.charts import MOST_EVENTS, MOST_PIECES, line, most_telling
from qwen_megatron.report.elements import duration
from qwen_megatron.report.numbers import numbers
from qwen_megatron.report.page import asset, digest, page_of
from qwen_megatron.report.run_files import RunFiles, differences, read_run
from qwen_megatron.report.timeline import Clock, Event, events, tokens_by_corpus

PHASES = {"forward": 0.5, "backward": 1.0, "communication": 0.25, "optimizer": 0.25, "data": 0.0, "other": 0.0}
HOSTILE = "</title><script>alert(1)</script><img src=x onerror=alert(1)>\"'&"


def step_row(step: int, **others: Any) -> dict[str, Any]:
    row = {
        "step": step,
        "loss": 4.0 - step / 10,
        "grad_norm": 1.0,
        "learning_rate": 1e-3,
        "consumed_tokens": 1024 * step,
        "step_seconds": 2.0,
        "phase_seconds": PHASES,
        "tokens_per_second": 512.0,
        "model_flops_utilization": None,
        "peak_memory_bytes": 3 << 29,
    }
    return row | others


def start_row(step: int, **parallel: Any) -> dict[str, Any]:
    sizes = {"tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1, "context_parallel_size": 1}
    return {
        "time": "2026-01-01T00:00:00+00:00",
        "step": step,
        "host": "node0",
        "world_size": 4,
        "environment": {"packages": {"torch": "2.13.0"}, "commit": "0123456789abcdef"},
        "config": {"parallel": sizes | parallel, "training": {"train_iters": 30}},
    }


def write(directory: Path, **files: Any) -> Path:
    """Writes lists as JSON Lines, objects as JSON, text as it is."""
    for name, content in files.items():
        path = directory / name.replace("_", ".")
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return directory


class Elements(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.words: list[str] = []
        self.ids: set[str] = set()
        self.scripts: list[dict[str, str | None]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.ids |= {value for name, value in attrs if name == "id" and value}
        if tag == "script":
            self.scripts.append(dict(attrs))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def data_of(page: str) -> Any:
    """What the page's script draws."""
    return json.loads(page.split('id="data">')[1].split("</script>")[0])


def run_of(directory: Path, **files: Any) -> RunFiles:
    """A run that left these files."""
    directory.mkdir(exist_ok=True)
    return read_run(write(directory, **files))


def test_the_page_shows_the_run(tmp_path: Path) -> None:
    write(
        tmp_path,
        metrics_jsonl=[
            {"step": 0, "eval_loss": 4.5},
            *(step_row(step) for step in range(1, 21)),
            {"step": 20, "eval_loss": 2.25},
        ],
        starts_jsonl=[start_row(0), start_row(10, tensor_model_parallel_size=2)],
        completion_json={"reason": "SIGTERM", "step": 20},
    )
    words = Elements(page_of(read_run(tmp_path))).words
    for expected in ("20 of 30", "2.0000", "2.2500", "20,480", "512", "1.50 GiB"):
        assert expected in words
    assert "Ended in order after step 20: SIGTERM." in words
    assert "DP4 (4 processes)" in words
    assert "TP2 x DP2 (4 processes)" in words
    assert words[words.index("parallel.tensor_model_parallel_size") :][1:3] == ["1", "2"]
    assert any("backward 50%, communication 12%" in word for word in words)


def test_nothing_in_the_files_becomes_markup(tmp_path: Path) -> None:
    directory = tmp_path / "a<b>&"
    directory.mkdir()
    changed = {**start_row(5), "host": HOSTILE, "time": {HOSTILE: HOSTILE}, "config": {HOSTILE: HOSTILE}}
    write(
        directory,
        metrics_jsonl=[step_row(1, phase_seconds={HOSTILE: 1.0}), step_row(2, loss=HOSTILE), step_row(3)],
        starts_jsonl=[start_row(0), changed],
        completion_json={"reason": HOSTILE, "step": HOSTILE},
        failure_json={HOSTILE: HOSTILE, "message": [HOSTILE]},
    )
    page = page_of(read_run(directory))
    elements = Elements(page)
    assert elements.tags.isdisjoint({"img", "link", "iframe", "object"})
    assert elements.scripts == [{"type": "application/json", "id": "data"}, {}], "the data and our script"
    assert page.count("</script>") == 2
    assert not [name for name in elements.attributes if name.startswith("on") or name in ("src", "href", "style")]
    assert page.count("</title>") == 1
    assert HOSTILE in elements.words, "shown as text"
    assert HOSTILE in [line["name"] for chart in data_of(page)["charts"] for line in chart["lines"]]


def test_the_browser_runs_our_script_only_and_needs_no_network(tmp_path: Path) -> None:
    page = page_of(run_of(tmp_path, metrics_jsonl=[step_row(1)]))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]  # type: ignore[index]
    style, script = asset("page.css"), asset("page.js")
    assert policy == f"default-src 'none'; style-src {digest(style)}; script-src {digest(script)}"
    assert f"<script>{script}</script>" in page
    assert f"<style>{style}</style>" in page
    # The namespace of SVG is a name, nothing is fetched from there.
    assert not re.search(r"https?:|url\(|@import", page.replace("http://www.w3.org/2000/svg", ""))
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", script)


def test_the_script_finds_its_elements_and_its_data(tmp_path: Path) -> None:
    page, script = page_of(run_of(tmp_path, metrics_jsonl=[step_row(1)], starts_jsonl=[start_row(0)])), asset("page.js")
    ids = set(re.findall(r'(?:getElementById|control)\("([\w-]+)"[,)]', script))
    assert ids >= {"data", "axis", "smoothing", "events", "whole"}
    assert ids <= Elements(page).ids
    data = data_of(page)
    assert {f"chart-{chart['name']}" for chart in data["charts"]} <= Elements(page).ids
    for part, name in (
        (data["charts"][0], "chart"),
        (data["charts"][0]["lines"][0], "line"),
        (data["events"][0], "mark"),
    ):
        used = set(re.findall(rf"\b{name}\.([a-z_]+)\b(?!\()", script))
        assert used
        assert used <= set(part), f"the script reads {name}.{used - set(part)}"


@pytest.mark.parametrize(
    "line",
    [
        '{"step": 3, "lo',
        "[]",
        "null",
        "\udcff".encode("utf-8", "surrogateescape").decode("latin-1"),
        "[" * 100_000,
        '{"step": "three", "loss": 1}',
        '{"step": 1e999, "loss": 1}',
        '{"step": 3, "loss": NaN, "grad_norm": null, "phase_seconds": [1], "tokens_per_second": "fast"}',
        '{"step": 3, "loss": 1' + "0" * 400 + "}",
        '{"step": 3, "loss": 2.5, "phase_seconds": {"forward": -1, "backward": "x"}}',
    ],
)
def test_whatever_a_line_holds_the_others_are_shown(tmp_path: Path, line: str) -> None:
    good = json.dumps(step_row(1))
    write(tmp_path, metrics_jsonl=f"{good}\n{line}\n", starts_jsonl=f"{line}\n{json.dumps(start_row(0))}\n")
    words = Elements(page_of(read_run(tmp_path))).words
    assert "tokens/s, median" in words
    assert words[words.index("tokens/s, median") + 1] == "512"


def test_a_failed_run_says_so(tmp_path: Path) -> None:
    failure = {"error": "TrainingError", "rank": 3, "step": 2, "phase": "backward"}
    write(tmp_path, metrics_jsonl=[step_row(1)], failure_json=failure, failures_jsonl=[{**failure, "step": 1}])
    words = Elements(page_of(read_run(tmp_path))).words
    assert "Failed; last step 1." in words
    assert words.count("TrainingError") == 2
    assert "backward" in words


def test_the_command_writes_beside_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, metrics_jsonl=[step_row(1)])
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_charts_are_told_to_screen_readers(tmp_path: Path) -> None:
    page = page_of(run_of(tmp_path, metrics_jsonl=[step_row(step) for step in range(1, 31)]))
    assert '<html lang="en">' in page
    plots = re.findall(r'<div class="plot"[^>]*>', page)
    assert len(plots) == len(data_of(page)["charts"]) > 3
    for plot in plots:
        assert 'role="img"' in plot
        for name in ("labelledby", "describedby"):
            assert re.search(f'aria-{name}="([^"]*)"', plot)[1] in Elements(page).ids  # type: ignore[index]
    assert "training: from 3.9 at step 1 to 1 at step 30, between 1 and 3.9." in page
    assert all(
        re.search(r"<label>[^<]*<(select|input)", label) for label in re.findall("<label>.*?</label>", page, re.S)
    )


def test_two_runs_beside_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run_of(tmp_path / "first", metrics_jsonl=[step_row(1), step_row(2)], starts_jsonl=[start_row(0)])
    changed = start_row(0, tensor_model_parallel_size=2)
    second = run_of(tmp_path / "second", metrics_jsonl=[step_row(1, loss=9.0)], starts_jsonl=[changed])
    page = page_of(first, second)
    assert [line["name"] for line in data_of(page)["charts"][0]["lines"]] == ["first: training", "second: training"]
    words = Elements(page).words
    assert words[words.index("loss of the last step") :][1:3] == ["3.8000", "9.0000"]
    assert words[words.index("parallel.tensor_model_parallel_size") :][1:3] == ["1", "2"]
    output = tmp_path / "both.html"
    assert main(["report", str(tmp_path / "first"), str(tmp_path / "second"), "--output", str(output)]) == 0
    assert output.read_text(encoding="utf-8") == page


def test_a_script_reads_the_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(
        tmp_path,
        metrics_jsonl=[*(step_row(step) for step in (1, 2)), {"step": 2, "eval_loss": 2.5, "corpus": "wiki"}],
        completion_json={"reason": "finished", "step": 2},
    )
    assert main(["report", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["steps"], found["loss"], found["tokens"], found["training_seconds"]) == (2, 3.8, 2048, 4.0)
    assert found["held_out_loss"] == {"wiki": 2.5}
    assert found["ended"] == {"reason": "finished", "step": 2}
    assert not (tmp_path / "report.html").exists()
    assert main(["report", str(tmp_path), "--csv", "-"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["row"], row["step"], row["loss"], row["phase_seconds.backward"]) for row in rows] == [
        ("step", "1", "3.9", "1.0"),
        ("step", "2", "3.8", "1.0"),
        ("evaluation", "2", "", ""),
    ]


@pytest.mark.parametrize("value", ["=1+1", "+1", "-1", "@sum"])
def test_no_text_becomes_a_formula(tmp_path: Path, capsys: pytest.CaptureFixture[str], value: str) -> None:
    write(tmp_path, metrics_jsonl=[step_row(1, spike=value, **{value: -1.5})])
    assert main(["report", str(tmp_path), "--csv", str(tmp_path / "out.csv")]) == 0
    row = next(csv.DictReader((tmp_path / "out.csv").open(encoding="utf-8")))
    assert row["spike"] == f"'{value}"
    assert row[f"'{value}"] == "-1.5", "a number stays one"


def test_options_that_do_not_go_together_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, metrics_jsonl=[step_row(1)])
    assert main(["report", str(tmp_path), "--json", "--output", "x.html"]) == 2
    assert "--output names the page, which --json and --csv do not write" in capsys.readouterr().err
    assert main(["report", *[str(tmp_path)] * 7]) == 2
    assert "7 runs must be at most 6" in capsys.readouterr().err


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds neither metrics\.jsonl nor starts\.jsonl; name the folder of a run"):
        read_run(tmp_path)


# What is drawn


def test_events_are_found_in_whatever_the_run_left(tmp_path: Path) -> None:
    (tmp_path / "iter_0000004").mkdir()
    (tmp_path / "iter_0000004.txt").touch()
    run = run_of(
        tmp_path,
        metrics_jsonl=[
            step_row(1),
            step_row(2, spike="transient"),
            step_row(3, loss=None, grad_norm=None),
            step_row(4),
        ],
        starts_jsonl=[start_row(0), start_row(2)],
        failure_json={"error": "Stuck", "message": "for 120 s", "step": 3},
        completion_json={"reason": "SIGTERM", "step": 4},
    )
    assert [(event.step, event.kind) for event in events(run)] == [
        (0, "start"),
        (2, "restart"),
        (2, "spike"),
        (3, "failure"),
        (3, "skipped"),
        (4, "checkpoint"),
        (4, "end"),
    ]
    assert "transient, loss 3.8000" in Elements(page_of(run)).words
    assert [mark["tokens"] for mark in data_of(page_of(run))["events"]][-1] == 4096


def test_checkpoints_give_way_to_other_events() -> None:
    found = [Event(kind="spike" if step == 7 else "checkpoint", step=step, text="") for step in range(2 * MOST_EVENTS)]
    kept = most_telling(found)
    assert len(kept) == MOST_EVENTS
    assert kept[0].step == 7
    assert kept[-1].step == 2 * MOST_EVENTS - 1


def test_a_clock_counts_tokens_and_seconds_of_steps(tmp_path: Path) -> None:
    clock = Clock(run_of(tmp_path, metrics_jsonl=[step_row(5), step_row(6, step_seconds=3.5), step_row(7)]))
    assert clock.at(0) == (0.0, 0.0)
    assert clock.at(5) == (5 * 1024, 2.0)
    assert clock.at(6.5) == (6 * 1024, 5.5)
    assert clock.at(99) == (7 * 1024, 7.5)


def test_tokens_of_each_corpus_go_on_from_the_last_start(tmp_path: Path) -> None:
    given = {"web": {"share": 0.75, "consumed_tokens": 3072, "epoch_tokens": 4096}, "odd": {"share": "x"}}
    start = {**start_row(4), "corpora": given}
    run = run_of(tmp_path, metrics_jsonl=[step_row(step) for step in range(1, 9)], starts_jsonl=[start_row(0), start])
    assert tokens_by_corpus(run, Clock(run)) == {"web": (6144.0, 1.5)}
    words = Elements(page_of(run)).words
    assert words[words.index("web") :][1:3] == ["6,144", "1.50"]
    assert numbers(run)["corpora"] == {"web": {"tokens": 6144.0, "epochs": 1.5}}


def test_a_long_run_keeps_its_spikes_and_its_means(tmp_path: Path) -> None:
    points = [(float(step), 100.0 if step == 54_321 else float(step % 2)) for step in range(100_000)]
    drawn = line("loss", points, Clock(run_of(tmp_path, metrics_jsonl=[step_row(1)])), color=0)
    assert (54_321.0, 100.0) in zip(drawn.steps, drawn.values, strict=True)
    assert len(drawn.values) <= 2 * MOST_PIECES
    assert drawn.means is not None
    assert sorted(drawn.means)[len(drawn.means) // 2] == pytest.approx(0.5, abs=0.01), "not the middle of the extremes"


def test_phases_add_up_to_a_step_however_long_the_run(tmp_path: Path) -> None:
    run = run_of(tmp_path, metrics_jsonl=[step_row(step) for step in range(1, 3001)])
    chart = next(chart for chart in data_of(page_of(run))["charts"] if chart["stacked"])
    assert [line["name"] for line in chart["lines"]] == ["forward", "backward", "communication", "optimizer"]
    assert {len(line["values"]) for line in chart["lines"]} == {MOST_PIECES}
    sums = [sum(values) for values in zip(*(line["values"] for line in chart["lines"]), strict=True)]
    assert sums == pytest.approx([2.0] * MOST_PIECES)


def test_far_apart_values_begin_on_a_logarithmic_axis(tmp_path: Path) -> None:
    rows = [step_row(step, grad_norm=10.0 ** (step - 2), learning_rate=step) for step in (1, 2, 3)]
    logs = {chart["name"]: chart["log"] for chart in data_of(page_of(run_of(tmp_path, metrics_jsonl=rows)))["charts"]}
    assert logs["grad_norm"]
    assert not logs["learning_rate"]
    assert not logs["tokens_per_second"], "its axis starts at 0"


@pytest.mark.parametrize(
    ("seconds", "words"), [(4.24, "4.2 s"), (725, "12 min 5 s"), (3600, "1 h 0 min"), (274_000, "3 d 4 h")]
)
def test_durations_are_said_in_two_units(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_differences_name_what_changed() -> None:
    before = {"a": {"x": 1, "y": [1]}, "b": 2, "gone": 3}
    after = {"a": {"x": 1, "y": [2]}, "b": 2, "new": None, "other": 0}
    assert differences(before, after) == [("a.y", [1], [2]), ("gone", 3, None), ("other", None, 0)]
