"""Pipelines: counts, resumption, changes, mistakes in the file."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from data_tools.cli import main
from data_tools.corpus.verify import verify
from data_tools.engine.document import read_documents
from data_tools.errors import DataError
from data_tools.pipeline.pipeline_file import load_pipeline
from data_tools.stages.tokenize_files import TokenizeOptions, tokenize
from tests.data_tools.pipeline.small_pipelines import (
    STAGES,
    TOKENIZE,
    contents,
    english,
    pipelines_in,
    run,
    write_input,
)


@pytest.fixture
def write_pipeline(tmp_path: Path) -> Callable[..., Path]:
    return pipelines_in(tmp_path)


def test_counts_add_up_and_every_bad_line_is_named(tmp_path: Path, write_pipeline: Callable[..., Path]) -> None:
    texts = [english(number % 150) for number in range(200)]
    write_input(tmp_path / "web.jsonl", texts, bad_after=123)
    write_input(tmp_path / "books.jsonl", [english(number) for number in range(140, 180)])
    summary = run(write_pipeline())
    read, normalise, dedup, tokens = summary.stages
    assert (read["records_in"], read["records_out"], read["rejected"]) == (241, 240, {"not_json": 1})
    assert read["parts"] > 4
    assert (normalise["records_in"], normalise["records_out"]) == (240, 240)
    assert (dedup["records_out"], dedup["rejected"]) == (180, {"exact_duplicate": 60})
    assert tokens["records_in"] == tokens["records_out"] == 180
    (bad,) = [orjson.loads(line) for line in summary.quarantine.read_bytes().splitlines()]
    assert (bad["file"], bad["line"], bad["reason"]) == (str(tmp_path / "web.jsonl"), 124, "not_json")
    corpora = tmp_path / "out" / "corpora"
    assert sum(verify(corpora / name).num_documents for name in ("web", "books")) == 180


def test_same_bytes_as_tokenizing_the_shards(tmp_path: Path, write_pipeline: Callable[..., Path]) -> None:
    write_input(tmp_path / "web.jsonl", [english(number) for number in range(150)])
    run(write_pipeline())
    shards = sorted((tmp_path / "out/stages/03-exact_dedup").glob("part-??????.jsonl.zst"))
    assert len(shards) > 2
    tokenize(shards, tmp_path / "reference", TokenizeOptions())
    for suffix in ("bin", "idx", "crc"):
        assert (tmp_path / f"out/corpora/web.{suffix}").read_bytes() == (tmp_path / f"reference.{suffix}").read_bytes()


def test_order_of_shards_is_kept_without_a_shuffle(tmp_path: Path, write_pipeline: Callable[..., Path]) -> None:
    write_input(tmp_path / "web.jsonl", [english(number) for number in range(100)])
    run(write_pipeline(STAGES + TOKENIZE + "    shuffle: false\n"))
    shards = sorted((tmp_path / "out/stages/03-exact_dedup").glob("part-??????.jsonl.zst"))
    tokenize(shards, tmp_path / "reference", TokenizeOptions(shuffle=False))
    assert (tmp_path / "out/corpora/web.bin").read_bytes() == (tmp_path / "reference.bin").read_bytes()


def test_result_does_not_depend_on_workers_or_repetition(tmp_path: Path, write_pipeline: Callable[..., Path]) -> None:
    write_input(tmp_path / "web.jsonl", [english(number % 60) for number in range(90)])
    first = run(write_pipeline(output="one"))
    again = run(write_pipeline(output="one"))
    assert (again.tasks_done, again.stages) == (0, first.stages)
    run(write_pipeline(output="two"), workers=2)
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert one.keys() == two.keys()
    assert {name for name in one if one[name] != two[name]} == set()


def test_survivors_depend_neither_on_order_nor_on_the_cut(tmp_path: Path, write_pipeline: Callable[..., Path]) -> None:
    texts = [english(number % 50) for number in range(80)]
    # Equal after normalisation only: which one stays must not be a matter of luck.
    texts += [text.upper() for text in texts[:30]] + [text.replace(" ", "  ") for text in texts[:30]]
    survivors = []
    for number, split_bytes in enumerate((100_000_000, 9000, 4000)):
        random.Random(number).shuffle(texts)
        write_input(tmp_path / "web.jsonl", texts)
        run(write_pipeline(STAGES, output=f"out{number}", split_bytes=split_bytes))
        shards = (tmp_path / f"out{number}/stages/03-exact_dedup").glob("part-??????.jsonl.zst")
        survivors.append(sorted(document.text for shard in shards for document in read_documents(shard)))
    assert len(survivors[0]) == 50
    assert survivors[0] == survivors[1] == survivors[2]


def test_of_equal_bytes_the_same_document_stays_whatever_the_order(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_input(tmp_path / f"{name}.jsonl", [english(number) for number in range(20)])
    survivors = []
    for number, order in enumerate(("abc", "cba", "bca")):
        inputs = ", ".join(f"{{path: {tmp_path}/{name}.jsonl, source: source-{name}}}" for name in order)
        path = tmp_path / "p.yaml"
        path.write_text(
            f"output: {tmp_path}/out{number}\nstages:\n  - {{kind: read, inputs: [{inputs}], split_bytes: 3000}}\n"
            "  - kind: exact_dedup\n"
        )
        run(path)
        shards = (tmp_path / f"out{number}/stages/02-exact_dedup").glob("part-??????.jsonl.zst")
        survivors.append(sorted((one.id, one.source, one.text) for shard in shards for one in read_documents(shard)))
    assert survivors[0] == survivors[1] == survivors[2]
    assert len(survivors[0]) == 20
    assert len({source for _, source, _ in survivors[0]}) > 1


def test_a_change_redoes_what_depends_on_it(tmp_path: Path, write_pipeline: Callable[..., Path]) -> None:
    write_input(tmp_path / "a.jsonl", [english(number) for number in range(60)])
    write_input(tmp_path / "b.jsonl", [english(number) for number in range(100, 160)])
    first = run(write_pipeline(STAGES))
    with (tmp_path / "a.jsonl").open("ab") as stream:
        stream.write(orjson.dumps({"text": "one more"}) + b"\n")
    second = run(write_pipeline(STAGES))
    assert second.stages[-1]["records_out"] == 121
    # Normalisation of b, read again for nothing, is skipped.
    assert 0 < second.tasks_done < first.tasks_done
    assert second.tasks_skipped >= 4
    # Another option of the last stage leaves the first two alone.
    third = run(write_pipeline(STAGES.replace("100", "90")))
    assert third.tasks_skipped >= second.stages[0]["parts"] + second.stages[1]["parts"]


def test_leftovers_of_another_configuration_go(tmp_path: Path, write_pipeline: Callable[..., Path]) -> None:
    write_input(tmp_path / "web.jsonl", [english(number) for number in range(60)])
    run(write_pipeline(STAGES, split_bytes=2000))
    (tmp_path / "out/stages/01-read/.part-000000.jsonl.zst.abc.tmp").write_bytes(b"left by a kill")
    (tmp_path / "out/stages/03-exact_dedup/lists/.hashes.json.abc.tmp").write_bytes(b"left by another")
    run(write_pipeline(STAGES, split_bytes=10**6))
    run(write_pipeline(STAGES, output="fresh", split_bytes=10**6))
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")
    assert not list((tmp_path / "out").rglob(".*"))


def test_damaged_or_missing_files_are_made_again(tmp_path: Path, write_pipeline: Callable[..., Path]) -> None:
    write_input(tmp_path / "web.jsonl", [english(number) for number in range(60)])
    run(write_pipeline())
    expected = contents(tmp_path / "out")
    (tmp_path / "out/stages/02-normalise/part-000000.jsonl.zst").write_bytes(b"")
    (tmp_path / "out/corpora/web.bin").unlink()
    (tmp_path / "out/stages/01-read/part-000001.manifest.json").write_bytes(b"{")
    assert run(write_pipeline()).tasks_done > 0
    assert contents(tmp_path / "out") == expected


def test_max_bad_and_exit_status(
    tmp_path: Path, write_pipeline: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    write_input(tmp_path / "web.jsonl", [english(number) for number in range(20)], bad_after=3)
    path = write_pipeline(STAGES)
    assert main(["run", str(path), "--max-bad", "0", "--workers", "1"]) == 1
    printed = capsys.readouterr()
    assert "1 of 21 records were rejected, more than --max-bad 0" in printed.err
    assert "rejected.jsonl" in printed.err
    path.write_text(f"max_bad: 0\n{path.read_text()}")
    assert main(["run", str(path), "--workers", "1"]) == 1
    assert "1 of 21 records were rejected, more than max_bad=0; " in capsys.readouterr().err
    assert main(["run", str(path), "--max-bad", "5%", "--workers", "1"]) == 0
    assert "exact_dedup" in capsys.readouterr().out
    assert os.listdir(tmp_path / "out") != []


def test_mistakes_in_the_file_come_all_at_once(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(
        "output: [5]\nstages:\n  - kind: read\n    inputs: [{path: a}]\n    split_byte: 5\n"
        "  - {kind: language, min_score: 2}\n  - {kind: dedupe}\n  - {kind: read, inputs: []}\n"
    )
    with pytest.raises(DataError) as error:
        load_pipeline(path)
    message = str(error.value)
    for expected in (
        "output=[5]: must be a string",
        f"stages[0].split_byte=5: unknown key; the closest known one is split_bytes ({path}:5)",
        f"stages[0].inputs[0].source: is missing ({path}:4)",
        f"stages[1].min_score=2: must be at most 1; use 1 ({path}:6)",
        "stages[2].kind=dedupe: must be read, normalise",
        "stages[3].name=read: is used twice",
        "stages[3].kind=read: is out of place",
    ):
        assert expected in message, message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("output: !!python/object:os.system x\nstages: []\n", r"the tag !!python/object:os\.system is not allowed"),
        ("output: &a x\nstages: *a\n", "stages: must be a list of at least one stage"),
        ("output: x\noutput: y\nstages: []\n", "output is given twice"),
        ("output: [\n", r"p\.yaml: line \d+: not valid YAML"),
        ("- a\n", "must be a mapping"),
    ],
)
def test_yaml_that_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        load_pipeline(path)


def test_a_stage_that_stands_without_what_it_needs(tmp_path: Path, write_pipeline: Callable[..., Path]) -> None:
    write_input(tmp_path / "web.jsonl", ["a"])
    with pytest.raises(DataError, match="kind=mixture: needs a stage tokenize before it"):
        load_pipeline(write_pipeline("  - kind: mixture\n"))
