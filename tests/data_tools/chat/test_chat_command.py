"""`qwen-data chat`, and `inspect` and `verify` of what it makes."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import zstandard

from data_tools.chat.chat_corpus import ChatCorpus
from data_tools.chat.chatml import ChatML
from data_tools.chat.formats import Reading
from data_tools.chat.samples import Sampler
from data_tools.cli import main
from data_tools.corpus.sidecar import Sidecar
from data_tools.engine import operations
from data_tools.engine.executor import InProcessExecutor, UnderWay
from data_tools.engine.task import Manifest, Task
from data_tools.errors import DataError
from data_tools.readers.jsonl import RejectedRecordError
from data_tools.stages import chat_files
from data_tools.tokenizer.qwen import IM_END, QwenTokenizer

TOKENIZER = QwenTokenizer()


def dialogue(number: int, turns: int = 1) -> dict[str, Any]:
    messages = []
    for turn in range(turns):
        messages.append({"role": "user", "content": f"Question {number}.{turn}?"})
        messages.append({"role": "assistant", "content": f"Answer {number}.{turn}."})
    return {"messages": messages}


def pair(number: int) -> dict[str, Any]:
    return {"prompt": f"Question {number}?", "chosen": f"Good {number}.", "rejected": f"Bad {number}."}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def write(records: list[Any], name: str = "in.jsonl") -> str:
        lines = [one if isinstance(one, bytes) else orjson.dumps(one) for one in records]
        (tmp_path / name).write_bytes(b"".join(line + b"\n" for line in lines))
        return str(tmp_path / name)

    return write


def chat(*arguments: str) -> int:
    return main(["chat", *arguments, "--workers", "1"])


def texts(prefix: Path) -> list[str]:
    corpus = ChatCorpus.open(prefix)
    return [TOKENIZER.decode(corpus.document(one).tokens.tolist()) for one in range(corpus.num_documents)]


def files(prefix: Path) -> dict[str, bytes]:
    """All but the sidecars, which hold the time."""
    names = (f"{prefix.name}{part}.{suffix}" for part in ("", ".targets") for suffix in ("bin", "idx", "crc"))
    return {name: (prefix.parent / name).read_bytes() for name in names}


def test_dialogues_are_shuffled_and_counted(
    tmp_path: Path, write: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    bad = [b"{broken", {"text": "a"}, {"messages": [{"role": "user", "content": "alone"}]}, b'"a"', b""]
    source = write([*map(dialogue, range(30)), *bad, dialogue(99, turns=40)])
    prefix = tmp_path / "out" / "chat"
    assert chat(source, "--output", str(prefix), "--max-tokens", "200") == 0
    sidecar = Sidecar.read(prefix)
    assert sidecar.records_in == 35
    assert sidecar.rejected == {"no_format": 1, "no_targets": 1, "not_an_object": 1, "not_json": 1}
    assert sidecar.chat is not None
    assert (sidecar.num_documents, sidecar.chat.truncated) == (31, 1)
    found = texts(prefix)
    numbers = [text.split("Answer ")[1].split(".")[0] for text in found]
    assert sorted(map(int, numbers)) == [*range(30), 99]
    assert numbers != sorted(numbers, key=int)
    start = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nQuestion"
    assert all(text.startswith(start) and text.endswith(".<|im_end|>\n") for text in found)
    listed = [orjson.loads(line) for line in Path(f"{prefix}.rejected.jsonl").read_bytes().splitlines()]
    assert [(one["file"], one["line"], one["reason"]) for one in listed] == [
        (source, 31, "not_json"),
        (source, 32, "no_format"),
        (source, 33, "no_targets"),
        (source, 34, "not_an_object"),
    ]
    output, errors = capsys.readouterr()
    assert "31 dialogues of 35 records" in output
    assert "1 cut at the end of a turn" in output
    assert f"qwen-data inspect {prefix} --document 0" in output
    assert f"qwen-megatron sft RECIPE.yaml 'data.blend=[{prefix}]'" in output
    assert "left out 4 of 35 records (no_format 1, no_targets 1, not_an_object 1, not_json 1)" in errors
    assert main(["verify", str(prefix)]) == 0
    assert sorted(path.name for path in prefix.parent.iterdir() if path.name.startswith(".")) == []


class Reversed(InProcessExecutor):
    """As processes may, ends tasks in another order than they were given in."""

    def __init__(self, workers: int) -> None:
        assert workers == 2

    def run(self, tasks: Sequence[Task], under_way: UnderWay | None = None) -> Iterator[Manifest]:
        return super().run(tasks[::-1], under_way)


def test_the_bytes_do_not_depend_on_the_number_of_workers(
    tmp_path: Path, write: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_files, "_PART_BYTES", 800)  # Ranges of the first file.
    monkeypatch.setattr(chat_files, "ProcessExecutor", Reversed)
    sources = [write([*map(dialogue, range(30)), b"bad"], "a.jsonl"), write([dialogue(30)], "b.jsonl")]
    (tmp_path / "c.json").write_bytes(orjson.dumps([dialogue(31), 3, dialogue(32)]))
    inputs = [*sources, str(tmp_path / "c.json")]
    assert main(["chat", *inputs, "--output", str(tmp_path / "one"), "--workers", "1"]) == 0
    assert main(["chat", *inputs, "--output", str(tmp_path / "two"), "--workers", "2"]) == 0
    assert list(files(tmp_path / "one").values()) == list(files(tmp_path / "two").values())
    lines = (tmp_path / "two.rejected.jsonl").read_bytes().splitlines()
    assert [(one["line"], one["reason"]) for one in map(orjson.loads, lines)] == [
        (31, "not_json"),
        (2, "not_an_object"),
    ]
    assert main(["chat", *inputs, "--output", str(tmp_path / "other"), "--seed", "7", "--workers", "1"]) == 0
    assert sorted(texts(tmp_path / "other")) == sorted(texts(tmp_path / "one"))
    assert texts(tmp_path / "other") != texts(tmp_path / "one")
    assert main(["chat", *inputs, "--output", str(tmp_path / "kept"), "--no-shuffle", "--workers", "1"]) == 0
    numbers = [int(text.split("Answer ")[1].split(".")[0]) for text in texts(tmp_path / "kept")]
    assert numbers == list(range(33))


def test_pairs_stay_together_and_their_answers_alone_are_learned(tmp_path: Path, write: Callable[..., str]) -> None:
    long = {**pair(9), "chosen": "long " * 200}
    same = {**pair(8), "rejected": "Good 8."}
    source = write([*map(pair, range(8)), same, long])
    prefix = tmp_path / "pairs"
    assert chat(source, "--kind", "pairs", "--output", str(prefix), "--max-tokens", "100") == 0
    sidecar = Sidecar.read(prefix)
    assert (sidecar.records_in, sidecar.num_documents) == (10, 16)
    assert sidecar.rejected == {"over_max_tokens": 1, "same_answers": 1}
    corpus = ChatCorpus.open(prefix, kind="pairs")
    for number in range(0, 16, 2):
        chosen, rejected = corpus.document(number), corpus.document(number + 1)
        for document, word in ((chosen, "Good"), (rejected, "Bad")):
            assert TOKENIZER.decode(document.tokens[document.targets].tolist()).startswith(word)
            assert document.tokens[np.flatnonzero(document.targets)[-1]] == IM_END
        first = int(np.argmax(chosen.targets))
        assert chosen.tokens[:first].tolist() == rejected.tokens[: int(np.argmax(rejected.targets))].tolist()


def test_earlier_answers_of_a_pair_are_not_learned(tmp_path: Path, write: Callable[..., str]) -> None:
    before = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c"
    source = write([{"chosen": f"{before}\n\nAssistant: d", "rejected": f"{before}\n\nAssistant: e"}])
    assert chat(source, "--kind", "pairs", "--output", str(tmp_path / "p")) == 0
    document = ChatCorpus.open(tmp_path / "p").document(0)
    assert TOKENIZER.decode(document.tokens[document.targets].tolist()) == "d<|im_end|>"


def test_prompts_are_opened_and_questions_alone_are_enough(tmp_path: Path, write: Callable[..., str]) -> None:
    source = write([pair(1), dialogue(2), {"prompt": "Question 3?"}, {"prompt": "long " * 100}])
    assert chat(source, "--kind", "prompts", "--output", str(tmp_path / "q"), "--max-tokens", "60") == 0
    assert Sidecar.read(tmp_path / "q").rejected == {"over_max_tokens": 1}
    ends = "?<|im_end|>\n<|im_start|>assistant\n"
    assert all(text.endswith(ends) for text in texts(tmp_path / "q"))
    corpus = ChatCorpus.open(tmp_path / "q", kind="prompts")
    assert not any(corpus.document(one).targets.any() for one in range(3))


def test_options_of_system_and_labels(tmp_path: Path, write: Callable[..., str]) -> None:
    source = write([dialogue(1)])
    start = "<|im_start|>user\nQuestion"
    for name, options, expected in (
        ("none", ["--no-system"], start),
        ("empty", ["--system", ""], f"<|im_start|>system\n<|im_end|>\n{start}"),
        ("own", ["--system", "Be brief."], f"<|im_start|>system\nBe brief.<|im_end|>\n{start}"),
    ):
        assert main(["chat", source, "--output", str(tmp_path / name), "--workers", "1", *options]) == 0
        assert texts(tmp_path / name)[0].startswith(expected)
    assert chat(source, "--output", str(tmp_path / "official"), "--labels", "qwen_official") == 0
    document = ChatCorpus.open(tmp_path / "official").document(0)
    assert document.targets[0]
    assert document.targets[-1]
    assert ChatCorpus.open(tmp_path / "official").content.labels == "qwen_official"


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "a.jsonl": bytes,
    "a.jsonl.gz": gzip.compress,
    "a.jsonl.zst": zstandard.compress,
    "a.json.bz2": bz2.compress,
    "a.json.xz": lzma.compress,
    "a.json": lambda content: b"\xef\xbb\xbf \n[" + b",\n".join(content.splitlines()) + b"]\n",
    "b.json.gz": lambda content: gzip.compress(b"[" + b",".join(content.splitlines()) + b"]"),
}


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_files_of_every_kind(tmp_path: Path, name: str) -> None:
    content = b"".join(orjson.dumps(dialogue(one)) + b"\n" for one in range(3))
    (tmp_path / name).write_bytes(COMPRESSIONS[name](content))
    assert chat(str(tmp_path / name), "--output", str(tmp_path / "out"), "--no-shuffle") == 0
    assert [f"Answer {one}." in text for one, text in enumerate(texts(tmp_path / "out"))] == [True] * 3


def test_files_that_break(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = b"".join(orjson.dumps(dialogue(one)) + b"\n" for one in range(300))
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(content)[:-200])
    assert chat(str(tmp_path / "cut.jsonl.gz"), "--output", str(tmp_path / "a")) == 1
    assert "1 input file is damaged" in capsys.readouterr().err
    assert Sidecar.read(tmp_path / "a").rejected["truncated_stream"] == 1
    (tmp_path / "array.json").write_bytes(b'[{"prompt": "a"}, {"prompt": ')
    assert chat(str(tmp_path / "array.json"), "--output", str(tmp_path / "b")) == 1
    assert "begins as a JSON array but is no JSON" in capsys.readouterr().err
    (tmp_path / "cut.json.gz").write_bytes(gzip.compress(b"[" + content + b"]")[:-9])
    assert chat(str(tmp_path / "cut.json.gz"), "--output", str(tmp_path / "c")) == 1
    assert "get the file again" in capsys.readouterr().err
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".", "b.", "c."))]


def test_hostile_records_cost_themselves_alone(tmp_path: Path, write: Callable[..., str]) -> None:
    deep = b"[" * 1000 + b"]" * 1000
    spoken = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], '
    records = [
        b'{"messages": [{"role": "user", "content": "\xff"}]}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b"[" * 5000,
        b'{"messages": ' + deep + b"}",
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": " " * 400_001}]},
        spoken + b'"tools": [' + deep + b"]}",
        spoken + b'"tools": [{"name": "a", "parameters": ' + deep + b"}]}",
        b'{"messages": [{"role": "assistant", "function_call": {"name": "a", "arguments": ' + deep + b"}}]}",
        b'{"messages": [{"role": ' + deep + b', "content": "a"}]}',
        {"messages": [{"role": "\x1b[31m", "content": "a"}]},
        {"messages": [{"role": "user", "content": {"a": 1}}]},
        dialogue(1, turns=200),
        dialogue(1),
    ]
    assert chat(write(records), "--output", str(tmp_path / "a"), "--max-document-bytes", "10K") == 0
    sidecar = Sidecar.read(tmp_path / "a")
    assert sidecar.num_documents == 1
    assert dict(sidecar.rejected) == {
        "invalid_utf8": 1,
        "lone_surrogate": 1,
        "not_json": 1,
        "text_not_string": 1,
        "too_long": 2,
        "unknown_role": 2,
        "wrong_call": 1,
        "wrong_tools": 2,
        "wrong_type": 1,
    }


def test_a_text_that_no_encoder_takes_costs_its_record() -> None:
    def refusing(text: str) -> list[int]:
        if "no" in text:
            raise DataError("not this")
        return [7]

    sampler = Sampler(
        reading=Reading(kind="dialogues"), vocabulary=ChatML(refusing, 1, 2), labels="assistant", max_tokens=99
    )
    (sample,) = sampler.samples({"prompt": "a", "completion": "no"})
    assert isinstance(sample, RejectedRecordError)
    assert (sample.reason, sample.detail) == ("not_encodable", "turn 1: not this")


def test_a_run_that_was_stopped_goes_on(
    tmp_path: Path, write: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_files, "_PART_BYTES", 800)
    source = write([*map(dialogue, range(40))])
    whole = tmp_path / "whole" / "chat"
    assert chat(source, "--output", str(whole)) == 0
    prefix = tmp_path / "chat"
    perform, done = operations.perform, []

    def stopping(task: Any, *others: Any) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(task.name)
        return perform(task, *others)

    monkeypatch.setattr(operations, "perform", stopping)
    assert chat(source, "--output", str(prefix)) == 130
    assert not prefix.with_suffix(".json").exists()
    assert (tmp_path / ".chat.chat-work").is_dir()
    again: list[str] = []
    monkeypatch.setattr(operations, "perform", lambda task, *others: again.append(task.name) or perform(task, *others))
    monkeypatch.setattr(chat_files, "write_locked", _full_disk)
    assert chat(source, "--output", str(prefix)) == 1
    assert again
    assert not set(again) & set(done)
    monkeypatch.undo()
    monkeypatch.setattr(chat_files, "_PART_BYTES", 800)
    monkeypatch.setattr(operations, "perform", None)  # All parts are there.
    assert chat(source, "--output", str(prefix)) == 0
    assert files(prefix) == files(whole)
    assert not (tmp_path / ".chat.chat-work").exists()


@pytest.mark.parametrize("at", [1, 2])
def test_a_run_that_dies_while_it_publishes_goes_on(
    tmp_path: Path, write: Callable[..., str], monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Between the two corpora, or between the files of one and its sidecar, there is no corpus, and no mixed one."""
    source, prefix = write([dialogue(1)]), tmp_path / "chat"
    real, calls = Sidecar.write, []

    def dying(sidecar: Sidecar, path: Path) -> None:
        calls.append(path)
        if len(calls) == at:
            path.with_name(f".{path.name}.0123abcd.tmp").touch()
            raise KeyboardInterrupt
        real(sidecar, path)

    monkeypatch.setattr(Sidecar, "write", dying)
    assert chat(source, "--output", str(prefix)) == 130
    assert (tmp_path / "chat.targets.bin").exists()
    with pytest.raises(DataError):
        ChatCorpus.open(prefix)
    monkeypatch.undo()
    assert chat(source, "--output", str(prefix)) == 0
    assert main(["verify", str(prefix)]) == 0
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def _full_disk(*arguments: object) -> None:
    raise DataError("the disk is full")


def test_wrong_uses(tmp_path: Path, write: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    source, prefix = write([dialogue(1), {"text": "a"}]), str(tmp_path / "a")
    assert chat(source, source, "--output", prefix) == 2
    assert "is named twice" in capsys.readouterr().err
    assert chat(str(tmp_path), "--output", prefix) == 2
    assert "must be one file" in capsys.readouterr().err
    assert chat(str(tmp_path / "none"), "--output", prefix) == 1
    assert chat(source, "--output", prefix, "--rejected", str(tmp_path)) == 2
    assert chat(write([], "empty.jsonl"), "--output", prefix) == 1
    assert "no records; the input is empty" in capsys.readouterr().err
    assert chat(write([{"text": "a"}], "text.jsonl"), "--output", prefix) == 1
    assert "none of 1 records gave a sample (no_format 1)" in capsys.readouterr().err
    assert chat(source, "--output", prefix) == 0
    assert chat(source, "--output", prefix) == 2
    assert "already there; use --overwrite" in capsys.readouterr().err
    assert chat(source, "--output", prefix, "--overwrite", "--max-bad", "0") == 1
    assert "1 of 2 records were rejected, more than --max-bad 0" in capsys.readouterr().err
    for wrong in (
        ["--kind", "poems"],
        ["--max-tokens", "0"],
        ["--system", "a", "--no-system"],
        ["--labels", "all"],
        ["--seed", "-1"],
    ):
        with pytest.raises(SystemExit, match="2"):
            chat(source, "--output", prefix, *wrong)
    assert main(["merge", prefix, prefix, "--output", str(tmp_path / "m")]) == 2
    assert "is a corpus of dialogues, which is not merged" in capsys.readouterr().err


def test_inspect_shows_what_is_learned(
    tmp_path: Path, write: Callable[..., str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = str(tmp_path / "a")
    assert chat(write([pair(1)]), "--kind", "pairs", "--output", prefix) == 0
    capsys.readouterr()
    assert main(["inspect", prefix, "--document", "1"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("pair 0, rejected, ")
    assert "<|im_start|>assistant\n⟦Bad 1.<|im_end|>⟧\n" in shown
    assert shown.count("⟦") == 1
    assert main(["inspect", prefix, "--document", "0", "--json"]) == 0
    sample = json.loads(capsys.readouterr().out)
    assert (sample["pair"], sample["which"], len(sample["targets"])) == (0, "chosen", sample["num_tokens"])
    assert main(["inspect", prefix]) == 0
    summary = capsys.readouterr().out
    assert summary.startswith("pairs              1\nlearned            ")
    assert main(["inspect", prefix, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["chat"]["num_samples"] == 1
    assert main(["inspect", prefix, "--document", "2"]) == 1
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    capsys.readouterr()
    assert main(["inspect", prefix, "--document", "0"]) == 0
    assert "\x1b[0m\x1b[1;32mGood 1.<|im_end|>\x1b[0m\x1b[2m" in capsys.readouterr().out


def test_a_text_does_not_paint_the_terminal(
    tmp_path: Path, write: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    record = {"prompt": "a\x1b[2J", "completion": "b\x1b]0;x\x07"}
    assert chat(write([record]), "--output", str(tmp_path / "a")) == 0
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "a"), "--document", "0"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "b\\x1b]0;x\\x07" in shown


def test_verify_names_the_damaged_mask(
    tmp_path: Path, write: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    prefix = tmp_path / "a"
    assert chat(write([dialogue(1)]), "--output", str(prefix)) == 0
    path = tmp_path / "a.targets.bin"
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)
    capsys.readouterr()
    assert main(["verify", str(prefix)]) == 1
    assert "a.targets.bin: block 0" in capsys.readouterr().err
    assert main(["verify", str(prefix), "--json"]) == 1
