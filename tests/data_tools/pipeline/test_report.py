"""The report: every number and name of a run, escaped, in one page."""

from html.parser import HTMLParser
from pathlib import Path

import orjson
import pytest

from data_tools.cli import main
from data_tools.errors import DataError
from data_tools.pipeline.report import write_report

VOID = {"meta"}


class Page(HTMLParser):
    """Checks that tags nest; collects what a reader sees and what a browser would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.seen.append(data)


def test_report_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [f"<script>alert({number})</script> & text " * (number + 1) for number in range(30)]
    lines = [orjson.dumps({"text": text}) for text in [*texts, texts[7]]] + [b"broken"]
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(lines))
    (tmp_path / "p.yaml").write_text(
        f"output: {tmp_path}/out\nstages:\n  - kind: read\n    inputs: [{{path: {tmp_path}/in.jsonl, source: web}}]\n"
        "  - kind: exact_dedup\n  - kind: tokenize\n  - kind: mixture\n"
    )
    assert main(["run", str(tmp_path / "p.yaml")]) == 0
    assert main(["report", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "out/report.html")
    page = Page((tmp_path / "out/report.html").read_text("utf-8"))
    assert page.fetched == []
    for expected in ("exact_duplicate", "not_json", "32", "\N{MINUS SIGN}1", "\N{MINUS SIGN}3.2", "100.00", "web", "p"):
        assert expected in page.seen, expected
    assert {"Corpora", "Time", "Dropped by source", "tokens seen", "MB/s"} <= set(page.seen)
    assert any(texts[7][:100] in data for data in page.seen)
    assert sum(data == "alert(7)" for data in page.seen) == 0
    assert yaml_blend(tmp_path / "out/mixture.yaml") == {f"{tmp_path}/out/corpora/web": 1.0}


PROSE = "The garden was quiet and the people of the house were asleep when the train came to the town with {}. "


def test_a_rule_that_takes_much_of_a_source_warns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the run and in the report, with the source; what is dropped shows its value and the rule."""

    def document(number: int, has_symbols: bool) -> str:
        words = " ".join(f"w{number}x{n}" for n in range(20))
        symbols = " ".join(["1234"] * 200) if has_symbols else ""
        return f"{PROSE.format(number) * 3}{words} {symbols}"

    for name, every in (("manuals", 2), ("books", 10)):
        lines = [orjson.dumps({"text": document(number, number % every == 0)}) for number in range(40)]
        (tmp_path / f"{name}.jsonl").write_bytes(b"\n".join(lines))
    rules = "{gopher_repetition: null, c4: null, fineweb: null}"
    inputs = ", ".join(f"{{path: {tmp_path}/{name}.jsonl, source: {name}}}" for name in ("manuals", "books"))
    (tmp_path / "mine.yaml").write_text(
        f"output: {tmp_path}/out\nstages:\n  - {{kind: read, inputs: [{inputs}]}}\n"
        f"  - {{kind: filter, rules: {rules}}}\n  - kind: tokenize\n  - kind: mixture\n"
    )
    assert main(["run", str(tmp_path / "mine.yaml"), "--workers", "1"]) == 0
    printed = capsys.readouterr()
    warnings = [line for line in printed.err.splitlines() if "warning" in line]
    assert len(warnings) == 1
    assert "filter: gopher_quality_letters drops 20 of 40 documents of manuals (50%)" in warnings[0]
    lines = printed.out.splitlines()
    assert [line.split() for line in lines if "gopher_quality_letters" in line] == [["gopher_quality_letters", "-24"]]
    assert f"corpora:  {tmp_path}/out/corpora/books, {tmp_path}/out/corpora/manuals" in lines
    assert f"mixture:  {tmp_path}/out/mixture.yaml" in lines
    assert f"train:    qwen-megatron pretrain SETTINGS.yaml {tmp_path}/out/mixture.yaml" in lines
    assert lines[-1] == f"report:   qwen-data report {tmp_path}/out"
    summary = orjson.loads((tmp_path / "out/pipeline.json").read_bytes())
    dropped = summary["stages"][1]["statistics"]["dropped_by_source"]
    assert dropped == {"gopher_quality_letters": {"books": 4, "manuals": 20}}
    page = Page(write_report(tmp_path / "out").read_text("utf-8"))
    assert page.seen[page.seen.index("Funnel") - 2].startswith("filter: gopher_quality_letters drops 20 of 40")
    assert {"manuals (40)", "books (40)", "50.0%", "10.0%", "mine"} <= set(page.seen)
    assert any(", below 0.8" in data for data in page.seen)
    letters = summary["stages"][1]["measured"]["gopher_quality_letters"]
    assert (letters["limit"], letters["is_least"], sum(letters["counts"])) == (0.8, True, 80)
    assert sum(letters["counts"][:4]) == 24  # Below the threshold, and dropped.
    assert {"at least 0.8", "at most 0.1"} <= set(page.seen)
    # Nothing is done again: the times are those of the run before.
    assert main(["run", str(tmp_path / "mine.yaml"), "--workers", "1"]) == 0
    again = orjson.loads((tmp_path / "out/pipeline.json").read_bytes())
    assert again["timings"]["filter"] == summary["timings"]["filter"]


def test_a_run_is_inspected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [orjson.dumps({"text": f"{PROSE.format(number) * 3}{'x' * number}"}) for number in range(30)]
    lines += [orjson.dumps({"text": f"too short {number}"}) for number in range(5)]
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(lines))
    output = str(tmp_path / "out")
    rules = ["rules.gopher_repetition=null", "rules.c4=null", "rules.fineweb=null", "read.split_bytes=2000"]
    assert main(["stage", "filter", str(tmp_path / "in.jsonl"), *rules, "--output", output, "--workers", "1"]) == 0
    capsys.readouterr()

    def said(*arguments: str) -> str:
        assert main(["inspect", output, *arguments]) == 0
        return capsys.readouterr().out

    stages = said().splitlines()
    assert stages[0].startswith("filter (")
    assert [line.split()[:4] for line in stages[1:3]] == [["read", "35", "->", "35"], ["filter", "35", "->", "30"]]
    assert ["gopher_quality_few_words", "5", "data", "5"] in [
        line.split() for line in said("--stage", "filter").splitlines()
    ]
    dropped = ("--stage", "filter", "--reason", "gopher_quality_few_words", "--sample", "3")
    assert said(*dropped) == said(*dropped)
    found = [orjson.loads(line) for line in said(*dropped, "--json").splitlines()]
    assert len(found) == 3
    assert all(one["text"].startswith("too short") and one["detail"] == "3, below 50" for one in found)
    kept = said("--stage", "filter", "--sample", "50", "--json").splitlines()
    assert len({orjson.loads(line)["id"] for line in kept}) == 30
    for arguments, message in (
        (["--stage", "none"], "has no stage none; there are read, filter"),
        (
            ["--stage", "filter", "--reason", "c4", "--sample", "1"],
            "dropped nothing as c4; there are kept, gopher_qual",
        ),
        (["--sample", "1"], "add --stage"),
    ):
        assert main(["inspect", output, *arguments]) == 2
        assert message in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "in"), "--stage", "filter"]) == 2


def yaml_blend(path: Path) -> dict[str, float]:
    import yaml

    blend: dict[str, float] = yaml.safe_load(path.read_text())["data"]["blend"]
    return blend


def test_no_run_no_report(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"pipeline\.json: not there; a report is made of a finished run"):
        write_report(tmp_path)
    (tmp_path / "pipeline.json").write_text('{"stages": []}')
    with pytest.raises(DataError, match=r"pipeline\.json: stages must be a list of at least one"):
        write_report(tmp_path)
