"""Bad input through whole pipelines: counted, named by file and line, in bounded memory; everything else arrives."""

import gzip
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import orjson
import pytest
import zstandard

from data_tools.cli import main
from data_tools.corpus.reader import Corpus
from data_tools.tokenizer.qwen import END_OF_DOCUMENT, QwenTokenizer
from tests.support.bombs import gzip_bomb

# Rows 20 to 23 of the project's list of faults: line, reason.
BAD = [
    (b'{"text": "a', "not_json"),
    (b'["a"]', "not_an_object"),
    (b'{"text": 5}', "text_not_string"),
    (b'{"text": "a", "score": NaN}', "not_json"),
    (b'{"text": ' + b"[" * 100_000, "not_json"),
    (b'{"text": "\\ud800"}', "lone_surrogate"),
    (b'{"text": "\xc3\x28"}', "invalid_utf8"),
    (b'{"text": "\x00"}', "not_json"),
    (b'{"text": ""}', "empty"),
    (b'{"content": "a"}', "missing_text"),
    (b'{"text": "' + b"x" * 300_000 + b'"}', "too_long"),
]
GOOD = ["first", "NUL \x00 inside", "<|endoftext|><|im_start|>", "line\r\nend", "末", "e\u0301", "last one"]


def write_inputs(folder: Path) -> dict[str, list[tuple[int, str]]]:
    """Good and bad lines in turn, plain and compressed, and streams that break off; file -> (line, reason)."""
    lines: list[bytes] = []
    expected: list[tuple[int, str]] = []
    for number, (line, reason) in enumerate(BAD):
        lines += [orjson.dumps({"text": f"{GOOD[number % len(GOOD)]} {number}"}), line]
        expected.append((len(lines), reason))
    content = b"\xef\xbb\xbf" + b"\r\n".join([*lines, b"", b'{"text": "behind"}'])
    (folder / "plain.jsonl").write_bytes(content)
    (folder / "packed.jsonl.gz").write_bytes(gzip.compress(content.replace(b"behind", b"in gzip")))
    many = b"".join(orjson.dumps({"text": f"record {number} {os.urandom(20).hex()}"}) + b"\n" for number in range(3000))
    (folder / "cut.jsonl.gz").write_bytes(gzip.compress(many)[:60_000])
    (folder / "cut.jsonl.zst").write_bytes(zstandard.compress(many)[:60_000])
    (folder / "tree").mkdir()
    for name, text in (("a.txt", b"a tree\n"), ("b.txt", b""), ("c.txt", b"\xff\xfe"), ("d.txt", b"y" * 300_000)):
        (folder / "tree" / name).write_bytes(text)
    return {
        "plain.jsonl": expected,
        "packed.jsonl.gz": expected,
        "b.txt": [(1, "empty")],
        "c.txt": [(1, "invalid_utf8")],
        "d.txt": [(1, "too_long")],
    }


def test_a_bad_record_costs_that_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = write_inputs(tmp_path)
    (tmp_path / "p.yaml").write_text(
        f"output: {tmp_path}/out\nstages:\n  - kind: read\n    split_bytes: 150000\n    max_document_bytes: 200000\n"
        f"    inputs:\n      - {{path: {tmp_path}/*.jsonl*, source: lines}}\n"
        f"      - {{path: {tmp_path}/tree, source: tree}}\n"
        "  - kind: normalise\n  - {kind: language, min_score: 0}\n  - {kind: exact_dedup}\n  - kind: fuzzy_dedup\n"
        "  - {kind: sample, fractions: {}}\n  - {kind: tokenize, shuffle: false, corpus_per_source: false}\n"
    )
    assert main(["run", str(tmp_path / "p.yaml"), "--max-bad", "20", "--workers", "1"]) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("qwen-data: error: 2 input files are damaged: ")
    for name in ("cut.jsonl.gz", "cut.jsonl.zst"):
        assert f"{tmp_path}/{name} (from line or row " in message
    # Streams are no records: of those, these are all.
    num_bad = sum(map(len, expected.values()))
    assert f"; {num_bad} of " in message
    assert "records were rejected, more than --max-bad 20; " in message
    quarantine = [
        orjson.loads(line) for line in (tmp_path / "out/stages/01-read/rejected.jsonl").read_bytes().splitlines()
    ]
    found: dict[str, list[tuple[int, str]]] = {}
    for entry in quarantine:
        found.setdefault(Path(entry["file"]).name, []).append((entry["line"], entry["reason"]))
    broken = {name: found.pop(name) for name in ("cut.jsonl.gz", "cut.jsonl.zst")}
    assert found == expected
    assert [[reason for _, reason in entries] for entries in broken.values()] == [["truncated_stream"]] * 2
    summary = orjson.loads((tmp_path / "out/pipeline.json").read_bytes())
    for stage in summary["stages"]:
        assert stage["records_in"] == stage["records_out"] + sum(stage["rejected"].values())
    # Every record before the breaks: the line of a break is the number of good ones before it, plus one.
    num_good = sum(entries[0][0] - 1 for entries in broken.values())
    assert num_good > 1000
    assert summary["stages"][0]["records_out"] == num_good + 2 * len(BAD) + 2 + 1
    corpus = Corpus.open(tmp_path / "out/corpora/corpus")
    tokens = corpus.tokens(0, corpus.num_tokens)
    documents = np.split(tokens, np.flatnonzero(tokens == END_OF_DOCUMENT) + 1)[:-1]
    assert len(documents) == summary["stages"][-1]["records_out"]
    tokenizer = QwenTokenizer()
    texts = {tokenizer.decode(document[:-1].tolist()) for document in documents}
    wanted = {f"{GOOD[number % len(GOOD)]} {number}".replace("e\u0301", "é") for number in range(len(BAD))}
    assert wanted | {"behind", "in gzip", "a tree\n"} <= texts


def test_half_a_gigabyte_of_one_record_takes_less_than_half_of_it(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with (tmp_path / "line.jsonl").open("wb") as stream:
        stream.write(b'{"text": "good"}\n{"text": "')
        stream.truncate(2**29)  # A hole in the file: no disk is used.
        stream.seek(0, os.SEEK_END)
        stream.write(b'"}\n{"text": "good too"}\n')
    (tmp_path / "line.jsonl.gz").write_bytes(gzip_bomb(b'{"text": "', 275, b'"}\n{"text": "behind a bomb"}\n'))
    (tmp_path / "page.txt.gz").write_bytes(gzip_bomb(b"", 275, b""))
    # Rows below the limit that together are no small batch, different ones and one many times.
    rows = pa.table({"text": [str(number) + "y" * 3_000_000 for number in range(90)]})
    pq.write_table(rows, tmp_path / "rows.parquet", use_dictionary=False, write_batch_size=1)
    pq.write_table(pa.table({"text": ["z" * 3_000_000] * 100}), tmp_path / "same.parquet")
    inputs = [str(path) for path in sorted(tmp_path.iterdir())]
    code = (
        "import sys\nfrom pathlib import Path\nfrom data_tools.cli import main\n"
        "status = main(sys.argv[1:])\n"
        "print(status, Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"
    )
    command = [sys.executable, "-c", code, "stage", "read", *inputs, "--output", str(tmp_path / "out")]
    result = subprocess.run(
        [*command, "max_document_bytes=4000000"], capture_output=True, text=True, check=True, timeout=300
    )
    status, peak = result.stdout.splitlines()[-1].split()
    assert status == "0"
    assert int(peak) * 1024 < 256e6, peak
    stage = orjson.loads((tmp_path / "out/pipeline.json").read_bytes())["stages"][0]
    assert (stage["records_out"], stage["rejected"]) == (3 + 90 + 100, {"too_long": 3})


def test_what_the_encoder_refuses_is_named_by_the_document(tmp_path: Path) -> None:
    texts = ["first", "x" + " " * 1_200_000, "second", "y" + " " * 1_200_000]
    content = b"\n".join(orjson.dumps({"text": text}) for text in texts)
    (tmp_path / "web.jsonl").write_bytes(content)
    (tmp_path / "p.yaml").write_text(
        f"output: {tmp_path}/out\nstages:\n  - {{kind: read, inputs: [{{path: {tmp_path}/web.jsonl, source: web}}]}}\n"
        "  - {kind: tokenize, encoder: tiktoken}\n"
    )
    assert main(["run", str(tmp_path / "p.yaml"), "--workers", "1"]) == 0
    listed = [orjson.loads(line) for line in (tmp_path / "out/corpora/web.rejected.jsonl").read_bytes().splitlines()]
    places = [content.index(text.encode()) - len(b'{"text":"') for text in texts]
    assert [(one["line"], one["reason"]) for one in listed] == [(2, "not_encodable"), (4, "not_encodable")]
    for one, place in zip(listed, places[1::2], strict=True):
        assert one["detail"].endswith(f"it is document {tmp_path}/web.jsonl@{place}")
