"""The command: exit statuses, output, errors without tracebacks."""

import bz2
import contextlib
import gzip
import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from data_tools.cli import main
from data_tools.commands.arguments import byte_size
from data_tools.commands.rejections import RejectionLimit
from data_tools.corpus.sidecar import Sidecar

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def test_import_is_light() -> None:
    code = (
        "import sys, data_tools, data_tools.cli, data_tools.corpus.reader, data_tools.corpus.inspect\n"
        "import data_tools.stages.tokenize_files\n"
        "heavy = {'torch', 'megatron', 'transformers', 'qwen_megatron', 'tiktoken', 'gigatoken', 'awkward', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == "[]"


def test_bare_import_takes_no_time() -> None:
    code = "import time; t = time.perf_counter(); import data_tools; print(time.perf_counter() - t)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert float(result.stdout) < 0.1


def test_from_text_to_a_verified_corpus(qwen_data: Run, tmp_path: Path, write_jsonl: Callable[..., Path]) -> None:
    source, prefix = write_jsonl(["Hello world", b"broken", "你好"]), tmp_path / "c"
    result = qwen_data("tokenize", source, "--output", prefix, "--no-shuffle")
    assert result.returncode == 0
    assert result.stdout.startswith(f"{prefix}: 2 documents, 5 tokens from ")
    assert result.stderr == f"qwen-data: rejected 1 of 3 records (not_json 1): {prefix}.rejected.jsonl\n"
    result = qwen_data("verify", prefix)
    assert (result.returncode, result.stdout) == (0, f"{prefix}: 2 documents, 5 tokens, all checksums agree\n")
    result = qwen_data("inspect", prefix, "--document", "1")
    assert (result.returncode, result.stdout) == (0, "你好\n")


def test_inspect(make_corpus: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    prefix = make_corpus(["Hello world", b"broken", "你好", "a a a a a"], shuffle=False)
    assert main(["inspect", str(prefix), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["num_documents"] == 3
    assert summary["num_tokens"] == 11
    assert summary["document_tokens"] == {"min": 2, "median": 3.0, "mean": 11 / 3, "max": 6}
    assert summary["rejected"] == {"not_json": 1}
    assert summary["records_in"] == 4
    assert summary["sample"] == "Hello world"
    assert summary["files"]["bin"]["bytes"] == 44
    assert main(["inspect", str(prefix)]) == 0
    text = capsys.readouterr().out
    assert "min 2, median 3, mean 3.7, max 6" in text
    assert "4; rejected: not_json 1" in text
    assert main(["inspect", str(prefix), "--document", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "document": 0,
        "start": 0,
        "num_tokens": 3,
        "tokens": [9707, 1879, 151643],
        "text": "Hello world",
    }
    assert main(["inspect", str(prefix), "--document", "3"]) == 1
    assert "document 3 does not exist, there are 3" in capsys.readouterr().err


def test_inspect_refuses_the_index_of_another_corpus(
    make_corpus: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    prefix, other = make_corpus(["a"]), make_corpus(["a", "b"], "other")
    Path(f"{prefix}.idx").write_bytes(Path(f"{other}.idx").read_bytes())
    assert main(["inspect", str(prefix)]) == 1
    assert "the index belongs to another corpus" in capsys.readouterr().err


def test_imported_corpus_of_another_vocabulary(
    write_megatron_corpus: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    prefix = write_megatron_corpus([[[200_000, 7]], [[3, 5]]])
    assert main(["import-corpus", str(prefix), "--end-of-document", "7", "--vocab-size", "200001"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{prefix}: imported 2 documents, 4 int32 tokens\n"
    assert "warning: 1 of 2 documents do not end with 7" in captured.err
    assert main(["inspect", str(prefix)]) == 0
    assert "unknown (imported)" in capsys.readouterr().out
    assert main(["inspect", str(prefix), "--document", "0"]) == 0
    assert capsys.readouterr().out == "not in Qwen's vocabulary, tokens: 200000 7\n"


@pytest.mark.parametrize(
    ("limit", "status"),
    [("2", 0), ("1", 1), ("0", 1), ("50%", 0), ("49%", 1), ("0.5", 0), ("0.499", 1), ("1.0", 0)],
)
def test_too_many_bad_records(
    tmp_path: Path, write_jsonl: Callable[..., Path], capsys: pytest.CaptureFixture[str], limit: str, status: int
) -> None:
    source = write_jsonl(["good", b"bad", "good", b"bad"])
    arguments = ["tokenize", str(source), "--output", str(tmp_path / "c"), "--max-bad", limit]
    assert main(arguments) == status
    assert Sidecar.read(tmp_path / "c").num_documents == 2
    message = f"2 of 4 records were rejected, more than --max-bad {limit}"
    assert (message in capsys.readouterr().err) == bool(status)


def test_a_stream_that_breaks_fails_every_command(
    tmp_path: Path, write_jsonl: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    good = write_jsonl(["a whole file"] * 10)
    cut = []
    for suffix, compress in (("gz", gzip.compress), ("zst", zstandard.compress), ("bz2", bz2.compress)):
        cut.append(tmp_path / f"cut.jsonl.{suffix}")
        cut[-1].write_bytes(compress(good.read_bytes())[:-1])
    for command in (["tokenize"], ["stage", "read"]):
        output = tmp_path / command[0]
        assert main([*command, *map(str, (good, *cut)), "--output", str(output), "--max-bad", "0"]) == 1
        message = capsys.readouterr().err.splitlines()[-1]
        assert message.startswith(f"qwen-data: error: 3 input files are damaged: {cut[0]} (from line or row ")
        assert all(str(path) in message for path in cut)
        assert "get such a file again or leave it out; " in message
        assert "--max-bad" not in message
    assert Sidecar.read(tmp_path / "tokenize").num_documents >= 10
    assert main(["tokenizer-report", str(cut[1])]) == 1
    assert f"{cut[1]}:1: " in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "-1", "x", "101%", "1.5", "-0.1", "nan%", "5.5.5"])
def test_limits_that_make_no_sense(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        RejectionLimit(text)


def test_sizes() -> None:
    assert [byte_size(text) for text in ("65536", "64K", "256M", "2G", "1MiB", "3 kb".replace(" ", ""))] == [
        65536,
        65536,
        2**28,
        2**31,
        2**20,
        3072,
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["tokenise"], "tokenise: no such command; did you mean tokenize?"),
        (["tokenize", "a.jsonl"], "required: --output"),
        (["tokenize", "a.jsonl", "--output", "c", "--workers", "0"], "0 must be at least 1"),
        (["tokenize", "a.jsonl", "--output", "c", "--workers", "two"], "'two' is not a whole number"),
        (["tokenize", "a.jsonl", "--output", "c", "--seed", "-1"], "-1 must be 0 to 18446744073709551615"),
        (["tokenize", "a.jsonl", "--output", "c", "--max-bad", "some"], "'some' is not a limit"),
        (["tokenize", "a.jsonl", "--output", "c", "--max-document-bytes", "9X"], "'9X' is not a size"),
        (["tokenize", "a.jsonl", "--output", "c", "--max-document-bytes", "1G"], "1G is more than 512M"),
        (["inspect", "c", "--document", "-1"], "-1 must be at least 0"),
    ],
)
def test_wrong_command_lines_exit_with_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["tokenize", "none.jsonl", "--output", "c"],
        ["inspect", "none"],
        ["verify", "none"],
        ["import-corpus", "none"],
        ["tokenize", "none.jsonl", "--output", "/proc/none/c"],
        ["collect-stdlib", "--output", "/proc/none/x.jsonl"],
        ["collect-docs", "--output", "/proc/none"],
    ],
)
def test_bad_data_exits_with_1_and_one_message(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("qwen-data: error: ")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_help_and_version(qwen_data: Run) -> None:
    start = time.perf_counter()
    result = qwen_data("--version")
    assert result.stdout.startswith("qwen-data ")
    for command in ("tokenize", "import-corpus", "inspect", "verify", "collect-stdlib"):
        result = qwen_data(command, "--help")
        assert result.returncode == 0
        assert f"examples:\n  qwen-data {command} " in result.stdout
    assert time.perf_counter() - start < 20


def test_progress_is_shown_on_a_terminal_only(tmp_path: Path, write_jsonl: Callable[..., Path]) -> None:
    source = write_jsonl(["Hello world"] * 100)
    ours, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "data_tools", "tokenize", str(source), "--output", str(tmp_path / "c")],
        stdout=subprocess.PIPE,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # What a terminal answers once nobody writes to it.
        while piece := os.read(ours, 65536):
            shown += piece
    os.close(ours)
    output = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 0
    assert b"tokenizing" in shown
    assert b"shuffling" in shown
    assert output.count("\n") == 1
    assert "100 documents, 300 tokens" in output


def test_output_into_a_closed_pipe_is_no_error(make_corpus: Callable[..., Path]) -> None:
    prefix = make_corpus(["x y " * 200_000])
    process = subprocess.Popen(
        [sys.executable, "-m", "data_tools", "inspect", str(prefix), "--document", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.read(3) == b"x y"
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(30) == 0


def test_full_disk_is_one_message(tmp_path: Path, write_jsonl: Callable[..., Path]) -> None:
    source = write_jsonl(["lorem ipsum " * 100_000])
    code = (
        "import resource, signal, sys\n"
        "from data_tools.cli import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        # Or half a module would be compiled to disk, for all to find.
        "sys.dont_write_bytecode = True\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "sys.exit(main(['tokenize', sys.argv[1], '--output', sys.argv[2]]))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(source), str(tmp_path / "c")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1
    assert "File too large" in result.stderr
    assert "Traceback" not in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"input.jsonl"}
