"""The notebook's cells, run one after the other as a kernel would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "notebook.ipynb"


def test_every_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") for cell in cells), "committed without outputs"
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    printed = []
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
            printed.append(capsys.readouterr().out)
    corpus, configuration, training, use = printed
    assert " tokens;" in corpus
    assert "plus" in corpus
    assert "4 steps of 128 tokens" in configuration
    assert len(names["losses"]) == 4
    assert names["losses"][-1] < names["losses"][0]
    assert training.rstrip().endswith(str([round(loss, 2) for loss in names["losses"]]))
    assert "'README.md'" in use
    assert "7 plus 7 is" in use
