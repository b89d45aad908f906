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
    for expected in ("exact_duplicate", "not_json", "32", "\N{MINUS SIGN}1", "\N{MINUS SIGN}3.2", "100.00", "web"):
        assert expected in page.seen, expected
    assert any(texts[7][:100] in data for data in page.seen)
    assert sum(data == "alert(7)" for data in page.seen) == 0
    assert yaml_blend(tmp_path / "out/mixture.yaml") == {f"{tmp_path}/out/corpora/web": 1.0}


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
