"""What files hold reaches a terminal as text."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from data_tools.cli import main as qwen_data
from data_tools.io.plain_text import printable
from qwen_megatron.cli.main import main as qwen_megatron

RED = "\x1b[31m"


def test_only_what_a_terminal_would_obey_is_escaped() -> None:
    assert printable(f"a{RED}b\x07\x9b2J\u202ec\x7f\r\ud800") == "a\\x1b[31mb\\x07\\x9b2J\\u202ec\\x7f\\r\\ud800"
    assert printable("tab\tline\nÄ 语 🙂") == "tab\tline\nÄ 语 🙂"


def test_messages_of_both_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pipeline.json").write_text(json.dumps({"stages": [{f"{RED}x": 1}], "tool_version": "", "created": ""}))
    assert qwen_data(["report", str(tmp_path)]) == 1
    (tmp_path / f"c{RED}.json").write_text("{}")
    assert qwen_data(["inspect", str(tmp_path / f"c{RED}")]) == 1
    (tmp_path / "config.yaml").write_text(f'training: {{"{RED}seed": 1}}\n'.replace("\x1b", "\\e"))
    assert qwen_megatron(["show-config", str(tmp_path / "config.yaml")]) == 2
    assert qwen_megatron(["logits", "x", "--input-ids", str(tmp_path / f"{RED}.npy"), "--output", "y"]) == 1
    written = capsys.readouterr()
    assert "\x1b" not in written.err + written.out
    assert written.err.count("\\x1b[31m") >= 4


def test_warnings_of_a_run() -> None:
    from qwen_megatron.jobs.session import PrintableFormatter

    record = logging.LogRecord("x", logging.WARNING, "", 0, "%s: names %r", (f"a{RED}", "b"), None)
    assert PrintableFormatter("%(message)s").format(record) == "a\\x1b[31m: names 'b'"
