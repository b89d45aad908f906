"""Wrong uses of qwen-data: exit status, a word of the message, once, and nothing left behind but lists of bad records.

Those of tokenize's inputs: stages/test_tokenize_files.py; of stage's arguments: pipeline/test_stage_command.py.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from data_tools.cli import main
from tests.support.wrong_uses import WrongUse, names_of, said_by

PIPELINE = "output: out\nstages:\n  - kind: read\n    inputs:\n      - path: t.jsonl\n        source: web\n"

# Command line, in a folder with what `prepared` puts there; exit status; words of the message.
WRONG_USES = [
    # Pipelines.
    ("run nope.yaml", 2, ["nope.yaml: no such file"]),
    ("run kind.yaml", 2, ["stages[0].kind=reed", "read", "stages[1].rules.c5", "c4"]),
    ("run list.yaml", 2, ["list.yaml: must be a mapping"]),
    ("run good.yaml --shard 9/8", 2, ["'9/8' is not a shard"]),
    ("run good.yaml --workers many", 2, ["'many' is not a whole number"]),
    ("run good.yaml --workers 0", 2, ["0 must be at least 1"]),
    ("run good.yaml --max-bad some", 2, ["max_bad='some' is not a limit"]),
    ("stage nothing t.jsonl --output out", 2, ["'nothing' is no stage; choose one of"]),
    ("stage filter t.jsonl --output out rules.c5=null", 2, ["rules.c5", "c4"]),
    # Tokenization.
    ("tokenize none.jsonl --output out", 1, ["none.jsonl: cannot be read: No such file"]),
    ("tokenize empty.jsonl --output out --workers 1", 1, ["empty.jsonl: no records; the input is empty"]),
    ("tokenize t.jsonl --output c", 2, ["c.json", "already there; use --overwrite"]),
    ("tokenize t.jsonl --output folder/", 2, ["names a folder"]),
    ("tokenize t.jsonl t.jsonl --output out", 2, ["t.jsonl: is named twice"]),
    ("tokenize folder --output out", 1, ["folder: no such file"]),
    ("tokenize [t]*.jsonl t.jsonl --output out", 2, ["t.jsonl: is named twice"]),
    ("tokenize t.jsonl --format csv --output out", 2, ["--format", "invalid choice: 'csv'"]),
    ("tokenize t.jsonl --output out --rejected folder", 2, ["folder: is a folder; name a file"]),
    ("tokenize t.jsonl --output t.jsonl/out", 2, ["t.jsonl, which is a file and not a folder"]),
    # Corpora.
    ("inspect none", 1, ["none.json"]),
    ("inspect c --document 999", 1, ["document 999 does not exist, there are 2"]),
    ("inspect c --document -1", 2, ["-1 must be at least 0"]),
    ("verify none", 1, ["none.json"]),
    ("verify damaged", 1, ["damaged.bin", "block 0"]),
    ("chat", 2, ["--output"]),
    ("chat none.jsonl --output out", 1, ["none.jsonl", "cannot be read"]),
    ("chat . --output out", 2, ["must be one file; name files of JSON Lines or JSON arrays"]),
    ("chat c.json --output c", 2, ["already there; use --overwrite"]),
    ("chat c.json --output out --format pairs", 2, ["--format", "invalid choice: 'pairs'"]),
    ("collect-docs", 2, ["--output"]),
    ("merge c none --output out", 1, ["none.json"]),
    ("merge c other --output out", 1, ["end_of_document", "only corpora of one tokenizer can be merged"]),
    ("merge c --output c", 2, ["is one of the corpora to merge"]),
    ("merge c --output other", 2, ["already there; use --overwrite"]),
    ("import-corpus c", 2, ["c.json: already there; use --overwrite"]),
    ("report folder", 1, ["folder"]),
    # Vocabularies.
    ("tokenizer augment en=none.jsonl --output v", 1, ["none.jsonl: no such file"]),
    ("tokenizer augment en=empty.jsonl --output v", 1, ["empty.jsonl: no document has text; --text-key names its key"]),
    ("tokenizer augment en=t.jsonl --text-key body --output v", 1, ["t.jsonl: no document has text"]),
    ("tokenizer augment en=t.jsonl t.jsonl --output v", 2, ["t.jsonl: named by two of the inputs"]),
    ("tokenizer augment en=t.jsonl --output t.jsonl", 2, ["t.jsonl: is there already", "--overwrite"]),
    ("tokenizer augment en=t.jsonl --output folder", 2, ["folder: is a folder; name a file"]),
    ("tokenizer augment en=t.jsonl --output none/v", 2, ["none/v: the folder none is not there"]),
    ("tokenizer augment en=t.jsonl --output v --size 99156", 2, ["--size 99156 must be above the 99156 tokens"]),
    ("tokenizer augment en=t.jsonl --output v --size 0", 2, ["0 must be at least 1"]),
    ("tokenizer augment en=t.jsonl --output v --weight zh=3", 2, ["--weight zh: no text", "there are en"]),
    ("tokenizer augment en=t.jsonl --output v --weight en=0", 2, ["'en=0' is no weight; write LANGUAGE=NUMBER"]),
    ("tokenizer augment en=t.jsonl --output v --weight en=nan", 2, ["'en=nan' is no weight"]),
    ("tokenizer augment en=t.jsonl --output v --weight 3", 2, ["'3' is no weight"]),
    ("tokenizer augment en=t.jsonl --output v --weight en=1 --weight en=2", 2, ["--weight is given twice"]),
    ("tokenizer augment en=t.jsonl --output v --base none", 1, ["none: cannot be read"]),
    ("tokenizer augment en=t.jsonl --output v --base t.jsonl", 1, ["t.jsonl:1: must be a token in base64"]),
    ("tokenizer augment en=t.jsonl --output v --require-size", 1, ["v: not written: ", "more text makes more"]),
    ("tokenizer", 2, ["the following arguments are required: ACTION"]),
    # No command, and one that is none.
    ("", 2, ["the following arguments are required: COMMAND"]),
    ("tokenise t.jsonl", 2, ["tokenise: no such command; did you mean tokenize?"]),
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "t.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    (folder / "empty.jsonl").write_bytes(b"")
    (folder / "fake.jsonl.gz").write_bytes(gzip.compress(b"{}")[:9])
    (folder / "folder").mkdir()
    (folder / "good.yaml").write_text(PIPELINE)
    (folder / "kind.yaml").write_text(
        PIPELINE.replace("kind: read", "kind: reed") + "  - kind: filter\n    rules:\n      c5: null\n"
    )
    (folder / "list.yaml").write_text("- a\n")
    for name in ("c", "damaged", "other"):
        assert main(["tokenize", str(folder / "t.jsonl"), "--output", str(folder / name), "--workers", "1"]) == 0
    content = bytearray((folder / "damaged.bin").read_bytes())
    content[0] ^= 1
    (folder / "damaged.bin").write_bytes(content)
    other = ["import-corpus", str(folder / "other"), "--overwrite", "--end-of-document", "151643"]
    assert main(other) == 0
    sidecar = (folder / "other.json").read_text().replace("151643", "151645")
    (folder / "other.json").write_text(sidecar)
    return folder


@pytest.mark.parametrize("use", WRONG_USES, ids=names_of(WRONG_USES))
def test_wrong_use(
    use: WrongUse,
    prepared: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = said_by(main, use, prepared, tmp_path / "here", capsys, monkeypatch, left="rejected.jsonl")
    assert shown.count(": error: ") == 1, shown
