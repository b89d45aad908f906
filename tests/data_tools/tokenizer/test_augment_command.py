"""qwen-data tokenizer augment: files to a rank file; what it prints, leaves, and refuses."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiktoken.load

from data_tools.cli import main
from data_tools.io.progress import SilentProgress
from data_tools.tokenizer.rank_file import cl100k_base, format_ranks, read_ranks
from data_tools.tokenizer.report import compression_by_language
from tests.data_tools.tokenizer.vocabularies import BYTES, text_of

Write = Callable[..., Path]
CHINESE = "昨天下午我们在公园里散步，天气非常好，很多人都带着孩子出来玩。"
ENGLISH = "The river ran slowly under the old stone bridge that morning, as rivers do."


@pytest.fixture
def small_base(tmp_path: Path) -> Path:
    path = tmp_path / "bytes.tiktoken"
    path.write_bytes(format_ranks(BYTES))
    return path


def test_from_files_to_a_vocabulary_that_compresses_better(
    tmp_path: Path, write_jsonl: Write, small_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chinese = write_jsonl([CHINESE] * 3 + [text_of("han", 300), b"broken"], "zh.jsonl")
    thai = tmp_path / "thai.txt"
    thai.write_text(text_of("thai", 500))
    output = tmp_path / "v.tiktoken"
    arguments = ["--base", str(small_base), "--size", "600", "--output", str(output)]
    assert main(["tokenizer", "augment", f"zh={chinese}", f"th={thai}", *arguments]) == 0
    shown = capsys.readouterr()
    assert shown.err == f"qwen-data: rejected 1 of 6 records (not_json 1): {output}.rejected.jsonl\n"
    lines = shown.out.splitlines()
    assert lines[0].startswith(f"{output}: 600 tokens, 344 of them new, from 0.0 MB of text in ")
    assert [line.split()[:2] for line in lines[2:]] == [["th", "1"], ["zh", "4"]]
    assert output.read_bytes().startswith(small_base.read_bytes())
    assert len(tiktoken.load.load_tiktoken_bpe(str(output))) == 600
    record = json.loads(Path(f"{output}.json").read_text())
    assert record["sha256"] == hashlib.sha256(output.read_bytes()).hexdigest()
    assert record["base_sha256"] == hashlib.sha256(small_base.read_bytes()).hexdigest()
    assert (record["num_tokens"], record["num_base_tokens"], record["base"]) == (600, 256, str(small_base))
    assert record["languages"]["zh"]["documents"] == 4
    # The report takes rank files, and finds what the command said.
    table = compression_by_language([str(thai)], [str(output), str(small_base)])
    (entry,) = table.values()
    assert entry.tokens["v"] == record["languages"]["th"]["tokens"]
    assert entry.tokens["bytes"] == record["languages"]["th"]["base_tokens"] == entry.num_bytes
    assert main(["tokenizer-report", str(thai), "--vocabulary", str(output)]) == 0
    assert " v " in capsys.readouterr().out
    assert main(["tokenizer-report", str(thai), *["--vocabulary", str(output)] * 2]) == 1
    assert "there are two of the name 'v'; rename the file" in capsys.readouterr().err


def test_the_base_is_cl100k_base_unless_another_is_named(tmp_path: Path, write_jsonl: Write) -> None:
    source, output = write_jsonl([text_of("thai", 50)]), tmp_path / "v.tiktoken"
    assert main(["tokenizer", "augment", f"th={source}", "--size", "99166", "--output", str(output)]) == 0
    tokens = read_ranks(output)
    assert tokens[:99_156] == cl100k_base()
    assert len(tokens) == 99_166
    assert json.loads(Path(f"{output}.json").read_text())["base"] == "cl100k_base"


def test_languages_are_found_out_where_they_are_not_given(
    tmp_path: Path, write_jsonl: Write, small_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_jsonl([ENGLISH, CHINESE] * 3)
    output = tmp_path / "v"
    arguments = ["tokenizer", "augment", str(source), "--base", str(small_base), "--output", str(output)]
    assert main([*arguments, "--size", "300", "--weight", "zh=9"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]] == ["zh", "en"]
    record = json.loads(Path(f"{output}.json").read_text())
    assert record["weights"] == {"zh": 9.0}


def test_fewer_tokens_than_asked_for_are_said_or_refused(
    tmp_path: Path, write_jsonl: Write, small_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = write_jsonl(["zyx zyx"]), tmp_path / "v"
    arguments = ["tokenizer", "augment", f"x={source}", "--base", str(small_base), "--output", str(output)]
    assert main([*arguments, "--size", "900"]) == 0
    note = "258 of 900 tokens: no pair is left that occurs 2 times in the texts; more text makes more tokens, or"
    assert capsys.readouterr().err.startswith(f"note: {note}")
    assert read_ranks(output)[256:] == [b"yx", b"zyx"]
    again = [*arguments, "--size", "900", "--overwrite", "--require-size", "--min-count", "1"]
    before = output.read_bytes()
    assert main(again) == 1
    assert f"{output}: not written: 259 of 900 tokens: " in capsys.readouterr().err
    assert output.read_bytes() == before
    assert main([*arguments, "--size", "258", "--overwrite", "--require-size"]) == 0
    assert capsys.readouterr().err == ""


def test_a_file_with_an_equals_sign_in_its_name(tmp_path: Path, small_base: Path, write_jsonl: Write) -> None:
    source = write_jsonl([ENGLISH] * 2, "a=b.jsonl")
    arguments = ["--base", str(small_base), "--size", "260", "--output", str(tmp_path / "v")]
    assert main(["tokenizer", "augment", f"en={source}", *arguments]) == 0
    assert main(["tokenizer", "augment", str(source), *arguments, "--overwrite"]) == 0


@pytest.mark.parametrize("unit", ["bytes", "merges"])
def test_interrupted_while_it_counts_or_learns_it_leaves_nothing(
    unit: str, tmp_path: Path, write_jsonl: Write, small_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from contextlib import nullcontext

    class Interrupting:
        def advance(self, amount: int) -> None:
            raise KeyboardInterrupt

    def bar(title: str, total: int, *, unit: str = "bytes", interrupted: str = unit) -> object:
        return nullcontext(Interrupting() if unit == interrupted else SilentProgress())

    monkeypatch.setattr("data_tools.io.progress.progress_bar", bar)
    source = write_jsonl([ENGLISH] * 2)
    before = set(tmp_path.iterdir())
    output = str(tmp_path / "v")
    assert main(["tokenizer", "augment", f"en={source}", "--base", str(small_base), "--output", output]) == 130
    assert set(tmp_path.iterdir()) == before


def test_damaged_input_fails_after_the_output_is_written(
    tmp_path: Path, small_base: Path, write_jsonl: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    import gzip

    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(write_jsonl([ENGLISH] * 50).read_bytes())[:-1])
    output = tmp_path / "v"
    arguments = ["--base", str(small_base), "--size", "260", "--output", str(output)]
    assert main(["tokenizer", "augment", f"en={cut}", *arguments]) == 1
    assert f"1 input file is damaged: {cut}" in capsys.readouterr().err
    assert len(read_ranks(output)) == 260


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["tokenizer", "--help"], ["tokenizer", "augment", "--help"]):
        with pytest.raises(SystemExit) as stop:
            main(command)
        assert stop.value.code == 0
        shown = capsys.readouterr().out
        assert "examples:" in shown
        assert "qwen-data tokenizer augment zh=" in shown
