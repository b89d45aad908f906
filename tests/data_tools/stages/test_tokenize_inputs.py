"""What `qwen-data tokenize` takes: folders, patterns, Parquet, WARC and text beside JSON Lines; each file once."""

import gzip
from pathlib import Path

import orjson
import pytest

from data_tools.cli import main
from data_tools.corpus.index import CorpusIndex
from data_tools.corpus.reader import Corpus
from data_tools.corpus.sidecar import Sidecar
from data_tools.tokenizer.qwen import QwenTokenizer

TOKENIZER = QwenTokenizer()
PAGE = "This is the main text of the page, long enough to be worth reading twice."


def texts_of(prefix: Path) -> list[str]:
    corpus, index = Corpus.open(prefix), CorpusIndex.open(prefix)
    return [TOKENIZER.decode(corpus.tokens(*index.document(n)).tolist()[:-1]) for n in range(index.num_documents)]


def tokenize(*arguments: str | Path) -> int:
    return main(["tokenize", *map(str, arguments), "--workers", "1", "--encoder", "tiktoken"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One file of each format, named in the order of their names."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(b'{"text": "first"}\n{"text": "second"}\nbroken\n')
    pq.write_table(pa.table({"text": ["third", None, "fourth"]}), folder / "b.parquet")
    (folder / "c.txt").write_text("fifth,\nof two lines\n")
    (folder / "d.md.gz").write_bytes(gzip.compress(b"# sixth\n"))
    http = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html><body><main><p>{PAGE}</p></main></body></html>"
    head = f"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: {len(http)}\r\n\r\n"
    (folder / "e.warc").write_text(head + http + "\r\n\r\n", newline="")
    (folder / "f.jsonl.gz").write_bytes(gzip.compress(b'{"text": "last"}\n'))
    return folder


EXPECTED = ["first", "second", "third", "fourth", "fifth,\nof two lines\n", "# sixth\n", PAGE, "last"]


def test_a_folder_of_every_format(tmp_path: Path, folder: Path) -> None:
    prefix = tmp_path / "corpus"
    assert tokenize(folder, "--output", prefix, "--no-shuffle") == 0
    assert texts_of(prefix) == EXPECTED
    sidecar = Sidecar.read(prefix)
    assert sidecar.rejected == {"not_json": 1, "text_not_string": 1}
    assert sidecar.records_in == len(EXPECTED) + 2
    assert [Path(one.path).name for one in sidecar.inputs] == sorted(path.name for path in folder.iterdir())
    listed = [orjson.loads(line) for line in Path(f"{prefix}.rejected.jsonl").read_bytes().splitlines()]
    assert sorted((Path(one["file"]).name, one["line"], one["reason"]) for one in listed) == [
        ("a.jsonl", 3, "not_json"),
        ("b.parquet", 1, "text_not_string"),
    ]
    assert not list(tmp_path.glob(".*"))


def test_files_patterns_and_the_folder_give_the_same_bytes(tmp_path: Path, folder: Path) -> None:
    files = sorted(folder.iterdir())
    ways = {"folder": [folder], "files": files, "pattern": [f"{folder}/*"], "mixed": [*files[:2], f"{folder}/[c-z]*"]}
    contents = set()
    for name, inputs in ways.items():
        assert tokenize(*inputs, "--output", tmp_path / name) == 0
        contents.add(Path(tmp_path / f"{name}.bin").read_bytes())
    assert len(contents) == 1


def test_a_file_named_twice_is_refused(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for twice in ((folder, folder / "a.jsonl"), (f"{folder}/*.txt", f"{folder}/c*"), (folder, f"{folder}/../in")):
        assert tokenize(*twice, "--output", tmp_path / "corpus") == 2
        assert "is named twice; name every file once" in capsys.readouterr().err
    assert not list(tmp_path.glob("corpus*"))


def test_names_that_say_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """JSON Lines is known by its first character; --format says what even that does not."""
    (tmp_path / "records.txt").write_bytes(b'\n {"text": "one"}\n{"text": "two"}\n')
    assert tokenize(tmp_path / "records.txt", "--output", tmp_path / "a", "--no-shuffle") == 0
    assert texts_of(tmp_path / "a") == ["one", "two"]
    arguments = (tmp_path / "records.txt", "--format", "text", "--output", tmp_path / "b")
    assert tokenize(*arguments) == 0
    assert texts_of(tmp_path / "b") == ['\n {"text": "one"}\n{"text": "two"}\n']
    (tmp_path / "empty").mkdir()
    assert tokenize(tmp_path / "empty", "--output", tmp_path / "c") == 1
    assert "no such file" in capsys.readouterr().err


def test_no_document_at_all_names_the_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"broken\n" + b'{"content": "x", "id": 3}\n' * 5)
    assert tokenize(tmp_path / "a.jsonl", "--output", tmp_path / "c") == 1
    message = capsys.readouterr().err
    assert "none of 6 records gave a document (missing_text 5, not_json 1)" in message
    assert "line 2, missing_text, no key 'text'; the record has 'content', 'id'; --text-key names the key" in message


def test_a_cut_archive_is_named(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "e.warc"
    path.write_bytes(path.read_bytes() + path.read_bytes()[:-100])
    assert tokenize(folder, "--output", tmp_path / "c") == 1
    assert "e.warc (from line or row 1 on: the file ends" in capsys.readouterr().err
    assert sorted(texts_of(tmp_path / "c")) == sorted(EXPECTED)


def test_files_behind_urls(tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/tok/b.jsonl", b'{"text": "two"}\n')
    memory.pipe("/tok/a.jsonl", b'{"text": "one"}\n')
    assert tokenize("memory://tok/*.jsonl", "--output", tmp_path / "c", "--no-shuffle") == 0
    assert texts_of(tmp_path / "c") == ["one", "two"]


def test_what_is_read_is_not_read_again(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that fails while it encodes keeps what it has read."""
    from data_tools.stages import tokenize_encode, tokenize_files

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device", "somewhere")

    with monkeypatch.context() as broken:
        broken.setattr(tokenize_encode, "encode_part", full_disk)
        assert tokenize(folder, "--output", tmp_path / "c", "--no-shuffle") == 1
    read = sorted((tmp_path / ".c.work/read").glob("*.jsonl.zst"))
    times = [path.stat().st_mtime_ns for path in read]
    assert len(times) == 3
    seen: list[int] = []

    def seal(*arguments: object) -> object:
        seen.extend(path.stat().st_mtime_ns for path in read)
        return original(*arguments)

    original = tokenize_files.seal
    monkeypatch.setattr(tokenize_files, "seal", seal)
    assert tokenize(folder, "--output", tmp_path / "c", "--no-shuffle") == 0
    assert seen == times
    assert texts_of(tmp_path / "c") == EXPECTED


def rejections(prefix: Path) -> list[tuple[str, int, str]]:
    lines = Path(f"{prefix}.rejected.jsonl").read_bytes().splitlines()
    return [(Path(one["file"]).name, one["line"], one["reason"]) for one in map(orjson.loads, lines)]


def test_what_the_encoder_refuses_is_named_by_file_and_record(tmp_path: Path) -> None:
    """Of files that are read to JSON Lines first it sees those, which are gone when the list is read."""
    import fsspec
    import pyarrow as pa
    import pyarrow.parquet as pq

    refused = "x" + " " * 1_200_000  # By the reference encoder.
    columns = [["a", None, refused, "b", refused, None], [refused, "c", "", refused]]
    for name, texts in zip(("a.parquet", "b.parquet"), columns, strict=True):
        pq.write_table(pa.table({"text": texts}), tmp_path / name)
    (tmp_path / "d.txt").write_text(refused)
    (tmp_path / "e.jsonl").write_bytes(b'\n{"text": "d"}\nbroken\n' + orjson.dumps({"text": refused}) + b"\n")
    content = b'\n{"text": "e"}\n\n' + orjson.dumps({"text": refused}) + b"\n"
    fsspec.filesystem("memory").pipe("/refused/f.jsonl", content)
    files = [tmp_path / name for name in ("a.parquet", "b.parquet", "d.txt", "e.jsonl")]
    prefix = tmp_path / "corpus"
    assert tokenize(*files, "memory://refused/f.jsonl", "--output", prefix, "--no-shuffle") == 0
    assert texts_of(prefix) == ["a", "b", "c", "d", "e"]
    # Files that are read first come first.
    assert rejections(prefix) == [
        ("a.parquet", 1, "text_not_string"),
        ("a.parquet", 2, "not_encodable"),
        ("a.parquet", 4, "not_encodable"),
        ("a.parquet", 5, "text_not_string"),
        ("b.parquet", 0, "not_encodable"),
        ("b.parquet", 2, "empty"),
        ("b.parquet", 3, "not_encodable"),
        ("d.txt", 1, "not_encodable"),
        ("f.jsonl", 4, "not_encodable"),
        ("e.jsonl", 3, "not_json"),
        ("e.jsonl", 4, "not_encodable"),
    ]
    assert Sidecar.read(prefix).rejected == {"empty": 1, "not_encodable": 7, "not_json": 1, "text_not_string": 2}


def test_pages_that_the_encoder_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages are numbered as the reader numbers them, without images and with those that give no text."""
    from data_tools.errors import DataError
    from data_tools.tokenizer.encoder import TiktokenEncoder

    def response(kind: str, text: str) -> str:
        body = f"<html><body><main><p>{text}</p></main></body></html>" if text else ""
        http = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n\r\n{body}"
        return f"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: {len(http)}\r\n\r\n{http}\r\n\r\n"

    pages = [("text/html", ""), ("image/png", "no page"), ("text/html", PAGE), ("text/html", f"{PAGE} Refuse it.")]
    for name in ("a.warc", "b.warc"):
        (tmp_path / name).write_text("".join(response(*one) for one in pages), newline="")
    whole = TiktokenEncoder.encode_batch

    def encode_batch(self: TiktokenEncoder, texts: list[str]) -> object:
        if any("Refuse" in text for text in texts):
            raise DataError("no")
        return whole(self, texts)

    monkeypatch.setattr(TiktokenEncoder, "encode_batch", encode_batch)
    assert tokenize(tmp_path / "a.warc", tmp_path / "b.warc", "--output", tmp_path / "c") == 0
    expected = [(name, *row) for name in ("a.warc", "b.warc") for row in ((0, "empty"), (2, "not_encodable"))]
    assert rejections(tmp_path / "c") == expected


def test_a_text_is_too_long_by_its_own_bytes(tmp_path: Path) -> None:
    """Not by those of the line that it becomes, in which every line end takes two."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = ["\n" * 999 + "a", "\n" * 1000 + "a"]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    assert tokenize(tmp_path / "a.parquet", "--output", tmp_path / "c", "--max-document-bytes", "1000") == 0
    assert texts_of(tmp_path / "c") == texts[:1]
    assert rejections(tmp_path / "c") == [("a.parquet", 1, "too_long")]
