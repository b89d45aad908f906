"""Stages as commands of their own: the same bytes as in a pipeline, nothing done twice, mistakes named."""

import gzip
import random
from pathlib import Path

import orjson
import pytest
import zstandard

from data_tools.cli import main
from data_tools.engine.document import read_documents
from data_tools.stages.registry import STAGES

SENTENCES = (
    "The river ran slowly under the old stone bridge that morning.",
    "People from the village said that it would rain before the evening.",
    "She had walked with her brother to the market and back again.",
    "There was nothing of value in the house except the books and the clock.",
    "We have to be careful with the answers that we give to the children.",
    "Most of the ships in the harbour were waiting for the wind to turn.",
    "His letters describe the mountains, the weather and the food in great detail.",
    "Nobody could remember when the school had been painted for the last time.",
)
QUESTION = "Which of the three travellers arrived at the inn before the storm closed the only road to the coast?"


def story(number: int) -> str:
    lines = random.Random(number).sample(SENTENCES, 7)
    return f"This is story number {number} of the collection, it has {number + 7} parts.\n" + "\n".join(lines)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    texts = [
        *map(story, range(24)),
        story(3).upper().lower(),
        story(3),
        f"{story(5)}\nYes.",
        f"{story(40)}\n{QUESTION}",
    ]
    lines = [orjson.dumps({"text": text, "lang": "x"}) for text in [*texts, "cafe\u0301", story(41)]]
    lines.insert(7, b"broken")
    path = tmp_path / "web.jsonl"
    path.write_bytes(b"\n".join(lines))
    (tmp_path / "exam.jsonl").write_bytes(orjson.dumps({"question": QUESTION}))
    return path


def shards(output: Path, kind: str) -> dict[str, bytes]:
    (folder,) = (output / "stages").glob(f"??-{kind}")
    return {path.name: path.read_bytes() for path in folder.glob("part-*.zst")}


def test_a_chain_of_commands_is_a_pipeline(tmp_path: Path, source: Path) -> None:
    benchmarks = f"[{{name: exam, path: {tmp_path}/exam.jsonl, text_key: question}}]"
    chain = {
        "read": {"source": "web", "split_bytes": 6000},
        "normalise": {},
        "language": {"keep": "[en]", "min_score": 0.3},
        "filter": {},
        "exact_dedup": {},
        "fuzzy_dedup": {"rows": 30, "bands": 4},
        "decontaminate": {"benchmarks": benchmarks},
        "sample": {"fractions": "{web: 0.7}", "seed": 3},
        "tokenize": {},
    }
    stages = ""
    for kind, options in chain.items():
        lines = {"kind": kind, **options}
        if kind == "read":
            lines = {"kind": kind, "split_bytes": 6000, "inputs": f"[{{path: {source}, source: web, keep: [lang]}}]"}
        stages += "  - " + "\n    ".join(f"{key}: {value}" for key, value in lines.items()) + "\n"
    (tmp_path / "p.yaml").write_text(f"output: {tmp_path}/whole\nstages:\n{stages}")
    assert main(["run", str(tmp_path / "p.yaml"), "--workers", "2"]) == 0
    chain["read"]["keep"] = "[lang]"
    before = str(source)
    for kind, options in chain.items():
        output = tmp_path / kind
        # In this process: the pipeline above had processes, and starting two a stage is most of the time.
        arguments = ["stage", kind, before, *(f"{k}={v}" for k, v in options.items())]
        assert main([*arguments, "--output", str(output), "--workers", "1"]) == 0
        if kind != "tokenize":
            assert shards(output, kind) == shards(tmp_path / "whole", kind), kind
            assert shards(output, kind)
            before = str(output)
    for suffix in ("bin", "idx"):
        whole = tmp_path / f"whole/corpora/web.{suffix}"
        assert (tmp_path / f"tokenize/corpora/web.{suffix}").read_bytes() == whole.read_bytes()
    assert main(["stage", "mixture", str(tmp_path / "tokenize"), "--output", str(tmp_path / "mix")]) == 0
    assert f"{tmp_path}/tokenize/corpora/web" in (tmp_path / "mix/mixture.yaml").read_text()


def test_any_format_in_zstd_out_and_the_dropped_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    record = orjson.dumps({"body": story(1)}) + b"\n" + orjson.dumps({"body": "too short"}) + b"\n"
    (tmp_path / "a.jsonl").write_bytes(record)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(record))
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.compress(record))
    pq.write_table(pa.table({"body": [story(1), "too short"]}), tmp_path / "d.parquet")
    inputs = [str(path) for path in sorted(tmp_path.iterdir())]
    arguments = ["stage", "filter", *inputs, "read.text_key=body", "--output", str(tmp_path / "out"), "--workers", "1"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[1].split()[:4] == ["filter", "8", "->", "4"]
    assert printed[2].split() == ["gopher_quality_few_words", "-4"]
    assert f"report:   qwen-data report {tmp_path}/out" in printed
    assert printed[-1] == f"documents: {tmp_path}/out/stages/02-filter/part-??????.jsonl.zst"
    folder = tmp_path / "out/stages/02-filter"
    kept = [one.text for path in sorted(folder.glob("part-??????.jsonl.zst")) for one in read_documents(path)]
    assert kept == [story(1)] * 4
    dropped = b"".join(
        zstandard.ZstdDecompressor().stream_reader(path.read_bytes()).read()
        for path in folder.glob("part-*.dropped.jsonl.zst")
    )
    assert [orjson.loads(line)["reason"] for line in dropped.splitlines()] == ["gopher_quality_few_words"] * 4
    assert main(arguments) == 0
    assert "0 tasks done" in capsys.readouterr().out


def test_only_what_depends_on_a_change_is_done_again(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    read = ["stage", "read", str(source), "split_bytes=4000", "--output", str(tmp_path / "read"), "--workers", "1"]
    normalise = [
        "stage",
        "normalise",
        str(tmp_path / "read"),
        "--output",
        str(tmp_path / "normalise"),
        "--workers",
        "1",
    ]
    assert main(read) == main(normalise) == 0
    with source.open("ab") as stream:
        stream.write(b"\n" + orjson.dumps({"text": "one more"}))
    assert main(read) == main(normalise) == 0
    (*_, line) = (line for line in capsys.readouterr().out.splitlines() if " tasks done, " in line)
    done, skipped = line.split(" tasks done, ")
    assert int(done) >= 1
    assert int(skipped.split()[0]) >= 3
    (next((tmp_path / "read/stages/01-read").glob("part-000000.jsonl.zst"))).write_bytes(b"")
    assert main(normalise) == 1
    assert "part-000000.jsonl.zst: 0 bytes, its manifest says" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["nosuch", "a"], 2, "'nosuch' is no stage; choose one of read, normalise"),
        (["filter", "rules.c4=null"], 2, "INPUT is missing"),
        (["language", "a", "keep=en", "min_scor=2"], 2, "min_scor=2: unknown key; the closest known one is min_score"),
        (["language", "a", "keep=en"], 2, "keep=en: must be a list"),
        (["sample", "a", "seed=!!set {3}", "fractions={}"], 2, "the tag !!set is not allowed"),
        (["filter", "a", "rules=null", "rules.c4=null"], 2, "rules.c4=null: contradicts an earlier argument"),
        (["filter", "a", "read.text=b"], 2, "text=b: unknown key"),
        (["normalise", "/nowhere/a.jsonl"], 1, "/nowhere/a.jsonl: no such file"),
    ],
)
def test_mistakes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, message: str
) -> None:
    try:
        found = main(["stage", *arguments, "--output", str(tmp_path / "out")])
    except SystemExit as stop:
        found = int(str(stop.code))
    assert found == status
    assert message in capsys.readouterr().err


def test_settings_and_inputs_stand_anywhere(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, key, other = str(source), "split_bytes=6000", "read.source=web"
    lines = [
        [file, key, other, "--output", "OUT", "--workers", "1"],
        ["--output", "OUT", "--workers", "1", file, key, other],
        ["--workers", "1", key, "--output", "OUT", file, other],
        [file, "--output", "OUT", key, "--workers", "1", other],
    ]
    found = []
    for number, line in enumerate(lines):
        output = tmp_path / f"out{number}"
        assert main(["stage", "read", *(str(output) if one == "OUT" else one for one in line)]) == 0
        found.append(shards(output, "read"))
    assert len(found[0]) > 1
    assert found[0] == found[1] == found[2] == found[3]
    with pytest.raises(SystemExit):
        main(["stage", "read", file, "--workers", "1", "--nothing", "--output", str(tmp_path / "out"), key])
    assert "unrecognized arguments: --nothing" in capsys.readouterr().err


def test_outputs_of_runs_as_inputs(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "read")
    assert main(["stage", "read", str(source), "--output", output]) == 0
    for arguments, message in (
        ([output, str(source), "--output", str(tmp_path / "out")], "must be the only input"),
        ([output, "--output", output], "is the input too; choose another folder for --output"),
    ):
        assert main(["stage", "normalise", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert main(["stage", "mixture", output, "--output", str(tmp_path / "mix")]) == 1
    assert "no stage of this run left corpora; tokenize its documents first" in capsys.readouterr().err


def test_help_names_every_kind_and_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["stage", "--help"])
    text = capsys.readouterr().out
    assert all(f"\n{kind}\n" in text for kind in STAGES)
    for expected in ("min_score (0.65)", "rules.gopher_quality.min_words (50)", "text_key", "source (data)"):
        assert expected in text
    with pytest.raises(SystemExit):
        main(["stage", "sample", "--help"])
    text = capsys.readouterr().out
    assert "fractions ({})" in text
    assert "min_score" not in text
