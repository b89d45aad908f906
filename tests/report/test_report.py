"""The page about a run: what it shows, whatever stands in the files."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from qwen_megatron.cli.main import main
from qwen_megatron.errors import ConfigError
from qwen_megatron.report.chart import MOST_PIECES, Series, area_chart, averaged, line_chart, thinned, ticks
from qwen_megatron.report.page import page_of
from qwen_megatron.report.run_files import differences, read_run

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
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.words.append(data)


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
    assert elements.tags.isdisjoint({"script", "img", "link", "iframe", "object"})
    assert not [name for name in elements.attributes if name.startswith("on") or name in ("src", "href", "style")]
    assert page.count("</title>") == 1
    assert HOSTILE in elements.words, "shown as text"
    assert not re.search(r"https?:|url\(|@import", page), "needs no network"


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
    assert words[words.index("tokens/s, median") - 1] == "512"


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


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds neither metrics\.jsonl nor starts\.jsonl; name the folder of a run"):
        read_run(tmp_path)


# Charts


def places(svg: str) -> list[tuple[float, float]]:
    points = re.search(r'<polyline[^>]*points="([^"]*)"', svg)[1].split()  # type: ignore[index]
    return [(float(x), float(y)) for x, y in (point.split(",") for point in points)]


def test_a_line_rises_where_its_values_do() -> None:
    drawn = places(line_chart([Series(name="loss", points=[(1, 5.0), (2, 3.0), (4, 4.0)])]))
    (x1, y1), (x2, y2), (x3, y3) = drawn
    assert x3 - x2 == pytest.approx(2 * (x2 - x1), abs=0.2)
    assert y2 - y3 == pytest.approx((y2 - y1) / 2, abs=0.2)
    assert y1 < y3 < y2, "the picture's axis points down"


def test_far_apart_values_are_drawn_on_a_logarithmic_axis() -> None:
    (_, y1), (_, y2), (_, y3) = places(line_chart([Series(name="norm", points=[(1, 0.1), (2, 1.0), (3, 10.0)])]))
    assert y1 - y2 == pytest.approx(y2 - y3, abs=0.2)


@pytest.mark.parametrize("value", [0.0, 1e-30, -2.5, 1e300])
def test_one_point_or_equal_values_can_be_drawn(value: float) -> None:
    assert "<circle" in line_chart([Series(name="one", points=[(7, value)])])
    assert len(places(line_chart([Series(name="flat", points=[(7, value), (8, value)])]))) == 2
    assert line_chart([Series(name="none", points=[])]) == ""


def test_areas_stand_on_each_other() -> None:
    svg = area_chart(["a", "b"], [(0, [1.0, 1.0]), (1, [1.0, 3.0])])
    lower, upper = (
        [tuple(map(float, point.split(","))) for point in points.split()]
        for points in re.findall(r'<polygon[^>]*points="([^"]*)"', svg)
    )
    assert lower[:2] == upper[:1:-1], "the upper one begins where the lower one ends"
    # Values 1 above 0, 2 and 4 in all.
    zero = lower[-1][1]
    assert [zero - lower[0][1], zero - upper[0][1], zero - upper[1][1]] == pytest.approx(
        [height * (zero - lower[0][1]) for height in (1, 2, 4)], abs=0.3
    )


def test_a_long_run_keeps_its_spikes_and_its_means() -> None:
    points = [(float(step), 100.0 if step == 54_321 else 1.0) for step in range(100_000)]
    assert (54_321.0, 100.0) in thinned(points)
    assert len(thinned(points)) <= 2 * MOST_PIECES
    rows = averaged([(float(step), [float(step % 2)]) for step in range(60_000)])
    assert len(rows) == MOST_PIECES
    assert all(value == [0.5] for _, value in rows)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (3, 97), (-5, 5), (1e-7, 3e-7), (1, 1e9)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    marks = ticks(low, high, 5)
    assert 2 <= len(marks) <= 8
    assert low <= marks[0] < marks[-1] <= high


def test_differences_name_what_changed() -> None:
    before = {"a": {"x": 1, "y": [1]}, "b": 2, "gone": 3}
    after = {"a": {"x": 1, "y": [2]}, "b": 2, "new": None, "other": 0}
    assert differences(before, after) == [("a.y", [1], [2]), ("gone", 3, None), ("other", None, 0)]
