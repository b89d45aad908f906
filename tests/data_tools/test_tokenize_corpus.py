"""JSON Lines to a corpus: Megatron's bytes, counts, order, refusal to clash."""

import gzip
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
import psutil  # type: ignore[import-untyped]
import pytest
import zstandard

from data_tools import corpus_writer, worker_pool
from data_tools.batch_encoder import BatchEncoder, EncodedBatch, EncodingSettings, LineBatch
from data_tools.corpus import Corpus
from data_tools.corpus_index import CorpusIndex
from data_tools.errors import DataError
from data_tools.jsonl import Line
from data_tools.lock import corpus_lock
from data_tools.sidecar import Sidecar
from data_tools.sources.python_stdlib import collect
from data_tools.tokenize import TokenizeOptions, tokenize
from data_tools.tokenizer import END_OF_DOCUMENT, FINGERPRINT, QwenTokenizer
from data_tools.worker_pool import encoded_batches

TOKENIZER = QwenTokenizer()


def documents_of(prefix: Path) -> list[list[int]]:
    corpus, index = Corpus.open(prefix), CorpusIndex.open(prefix)
    return [corpus.tokens(*index.document(number)).tolist() for number in range(index.num_documents)]


def files_of(prefix: Path) -> dict[str, bytes]:
    return {suffix: Path(f"{prefix}.{suffix}").read_bytes() for suffix in ("bin", "idx", "crc")}


def visible_and_hidden(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_every_document_is_its_ids_and_the_end(make_corpus: Callable[..., Path], texts: list[str]) -> None:
    prefix = make_corpus(shuffle=False)
    assert documents_of(prefix) == [TOKENIZER.encode(text) + [END_OF_DOCUMENT] for text in texts]


def test_bytes_equal_megatrons_builder(
    make_corpus: Callable[..., Path], write_megatron_corpus: Callable[..., Path], texts: list[str]
) -> None:
    texts = [f"{text} {number}" for number in range(40) for text in texts]
    prefix = make_corpus(texts, seed=99)
    documents = documents_of(prefix)
    in_order = [TOKENIZER.encode(text) + [END_OF_DOCUMENT] for text in texts]
    assert documents != in_order
    assert sorted(documents) == sorted(in_order)
    megatron = write_megatron_corpus([[document] for document in documents])
    assert Path(f"{prefix}.bin").read_bytes() == Path(f"{megatron}.bin").read_bytes()
    assert Path(f"{prefix}.idx").read_bytes() == Path(f"{megatron}.idx").read_bytes()


def test_megatrons_reader_reads_it(make_corpus: Callable[..., Path], texts: list[str]) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    prefix = make_corpus(shuffle=False)
    dataset = IndexedDataset(str(prefix))
    assert len(dataset) == len(texts)
    assert dataset.document_indices.tolist() == list(range(len(texts) + 1))
    for number, text in enumerate(texts):
        assert dataset[number].dtype == np.int32
        assert dataset[number].tolist() == TOKENIZER.encode(text) + [END_OF_DOCUMENT]


def test_sidecar_tells_what_was_done(make_corpus: Callable[..., Path], texts: list[str], tmp_path: Path) -> None:
    sidecar = Sidecar.read(make_corpus(seed=5))
    source = tmp_path / "corpus.jsonl"
    assert sidecar.num_documents == sidecar.records_in == len(texts)
    assert sidecar.num_tokens == sum(len(TOKENIZER.encode(text)) + 1 for text in texts)
    assert (sidecar.dtype, sidecar.end_of_document, sidecar.tokenizer) == ("int32", END_OF_DOCUMENT, FINGERPRINT)
    assert sidecar.shuffle_seed == 5
    assert sidecar.rejected == {}
    assert [(file.path, file.size_bytes, file.mtime_ns) for file in sidecar.inputs] == [
        (str(source), source.stat().st_size, source.stat().st_mtime_ns)
    ]
    assert visible_and_hidden(tmp_path) == {f"corpus.{suffix}" for suffix in ("bin", "idx", "crc", "json", "jsonl")}


def test_same_bytes_for_any_packing_and_number_of_workers(tmp_path: Path, write_jsonl: Callable[..., Path]) -> None:
    texts = [f"document {number} " + "lorem ipsum " * (number % 700) for number in range(3000)]
    first, second = write_jsonl(texts[:1700], "first.jsonl"), write_jsonl(texts[1700:], "second.jsonl")
    packed = [tmp_path / "first.jsonl.gz", tmp_path / "second.jsonl.zst"]
    packed[0].write_bytes(gzip.compress(first.read_bytes()))
    packed[1].write_bytes(zstandard.compress(second.read_bytes()))
    tokenize([first, second], tmp_path / "one")
    tokenize(packed, tmp_path / "two", TokenizeOptions(workers=2))
    tokenize([first, second], tmp_path / "reference", TokenizeOptions(encoder="tiktoken"))
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two") == files_of(tmp_path / "reference")
    tokenize([first, second], tmp_path / "seed", TokenizeOptions(seed=1))
    assert files_of(tmp_path / "one") != files_of(tmp_path / "seed")
    assert sorted(documents_of(tmp_path / "one")) == sorted(documents_of(tmp_path / "seed"))


def test_documents_larger_than_the_write_buffer(
    make_corpus: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"{number} " * (number * 7 % 40 + 1) for number in range(100)]
    expected = files_of(make_corpus(texts, "plain"))
    monkeypatch.setattr(corpus_writer, "_BUFFER_TOKENS", 50)
    monkeypatch.setattr(corpus_writer, "_DOCUMENTS_AT_ONCE", 9)
    assert files_of(make_corpus(texts, "small")) == expected


BAD_LINES = {
    "empty": b'{"text": ""}',
    "invalid_utf8": b'{"text": "\xff"}',
    "lone_surrogate": b'{"text": "\\ud800"}',
    "missing_text": b'{"body": "a"}',
    "not_an_object": b"[1, 2]",
    "not_json": b'{"text": NaN}',
    "text_not_string": b'{"text": 1}',
    "too_long": b'{"text": "' + b"x" * 5000 + b'"}',
}


@pytest.mark.parametrize("workers", [1, 2])
def test_each_bad_record_costs_that_record(
    make_corpus: Callable[..., Path], texts: list[str], tmp_path: Path, workers: int
) -> None:
    lines: list[str | bytes] = []
    for text, bad in zip(texts[:8], BAD_LINES.values(), strict=True):
        lines += [text, bad, b""]
    prefix = make_corpus(lines, shuffle=False, max_document_bytes=2000, workers=workers)
    assert [TOKENIZER.decode(document[:-1]) for document in documents_of(prefix)] == [
        TOKENIZER.decode(TOKENIZER.encode(text)) for text in texts[:8]
    ]
    sidecar = Sidecar.read(prefix)
    assert sidecar.rejected == dict.fromkeys(BAD_LINES, 1)
    assert sidecar.records_in == sidecar.num_documents + len(BAD_LINES) == 16
    listed = [orjson.loads(line) for line in Path(f"{prefix}.rejected.jsonl").read_bytes().splitlines()]
    assert [(entry["file"], entry["line"], entry["reason"]) for entry in listed] == [
        (str(tmp_path / "corpus.jsonl"), 3 * number + 2, reason) for number, reason in enumerate(BAD_LINES)
    ]
    assert all(entry["detail"] for entry in listed)


def test_text_the_encoder_refuses_is_a_rejection(make_corpus: Callable[..., Path]) -> None:
    prefix = make_corpus(["good", " " * 500_000, "also good"], encoder="tiktoken", shuffle=False)
    assert documents_of(prefix) == [TOKENIZER.encode(text) + [END_OF_DOCUMENT] for text in ("good", "also good")]
    assert Sidecar.read(prefix).rejected == {"not_encodable": 1}


def test_list_of_rejections_goes_where_it_is_told(make_corpus: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    prefix = make_corpus(["good", b"bad"], rejected=tmp_path / "lists" / "bad.jsonl")
    assert b'"line":2,"reason":"not_json"' in (tmp_path / "lists" / "bad.jsonl").read_bytes()
    assert not Path(f"{prefix}.rejected.jsonl").exists()
    with pytest.raises(DataError, match="its folder does not exist"):
        make_corpus(["good"], "other", rejected=tmp_path / "none" / "bad.jsonl")


def test_no_documents_at_all_is_an_error(make_corpus: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of 3 records gave a document \(missing_text 2, empty 1\).*--text-key"):
        make_corpus([b'{"content": "a"}', b'{"content": "b"}', ""])
    assert visible_and_hidden(tmp_path) == {"corpus.jsonl", "corpus.rejected.jsonl"}
    with pytest.raises(DataError, match="no records; the input is empty"):
        make_corpus([], "empty")


def test_refuses_to_overwrite(make_corpus: Callable[..., Path], tmp_path: Path) -> None:
    prefix = make_corpus(["one", b"bad"])
    before = files_of(prefix)
    with pytest.raises(DataError, match=r"corpus\.json, .*already there; use --overwrite"):
        make_corpus(["two"])
    assert files_of(prefix) == before
    make_corpus(["two"], overwrite=True)
    assert documents_of(prefix) == [TOKENIZER.encode("two") + [END_OF_DOCUMENT]]
    assert not (tmp_path / "corpus.rejected.jsonl").exists()  # The list of the corpus that is gone.
    Path(f"{prefix}.json").unlink()
    with pytest.raises(DataError, match=r"corpus\.bin, .*already there"):
        make_corpus(["three"])


def test_failed_overwrite_keeps_the_old_corpus(make_corpus: Callable[..., Path]) -> None:
    prefix = make_corpus(["one"])
    before = files_of(prefix)
    with pytest.raises(DataError, match="none of 1 records"):
        make_corpus([b"bad"], overwrite=True)
    assert files_of(prefix) == before
    assert Sidecar.read(prefix).num_documents == 1


def _hold(
    prefix: Path, held: "multiprocessing.synchronize.Event", release: "multiprocessing.synchronize.Event"
) -> None:
    with corpus_lock(prefix):
        held.set()
        release.wait(30)


def test_second_writer_is_refused_and_the_holder_named(make_corpus: Callable[..., Path], tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    held, release = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(tmp_path / "corpus", held, release))
    holder.start()
    try:
        assert held.wait(30)
        with pytest.raises(DataError, match=rf"corpus\.lock: process {holder.pid} on .* is writing this corpus"):
            make_corpus()
        assert not (tmp_path / "corpus.json").exists()
    finally:
        holder.kill()
        holder.join()
    make_corpus()  # The kernel took the lock from the dead holder.
    assert not (tmp_path / "corpus.lock").exists()


def test_leftovers_of_a_killed_run_are_removed(make_corpus: Callable[..., Path], tmp_path: Path) -> None:
    leftover = tmp_path / ".corpus.scratch-abc"
    leftover.mkdir()
    (leftover / "spool").write_bytes(b"x")
    make_corpus()
    assert not leftover.exists()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_run_leaves_nothing(tmp_path: Path, workers: int, number: signal.Signals, status: int) -> None:
    source = tmp_path / "large.jsonl"
    line = orjson.dumps({"text": "0123456789 lorem ipsum\n" * 40_000}) + b"\n"
    source.write_bytes(line * 60)  # Several seconds of work for the reference encoder.
    process = subprocess.Popen(
        [sys.executable, "-m", "data_tools", "tokenize", str(source), "--output", str(tmp_path / "c")]
        + ["--workers", str(workers), "--encoder", "tiktoken"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 30
    while not any(path.stat().st_size for path in tmp_path.glob(".c.scratch-*/spool")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # As a terminal does.
    else:
        process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == status
    assert "Traceback" not in errors, errors
    assert visible_and_hidden(tmp_path) == {"large.jsonl"}


@pytest.mark.parametrize("delay_seconds", [0.0, 0.3])
def test_killed_worker_is_an_error(tmp_path: Path, write_jsonl: Callable[..., Path], delay_seconds: float) -> None:
    texts = ["lorem ipsum " * 20_000] * 100
    code = (
        "import os, signal, sys, threading, time, psutil\n"
        "from data_tools.cli import main\n"
        "def kill_first_worker():\n"
        "    while True:\n"
        "        children = [c for c in psutil.Process().children() if 'spawn_main' in ' '.join(c.cmdline())]\n"
        "        if children:\n"
        "            time.sleep(float(sys.argv[3]))\n"
        "            return children[0].kill()\n"
        "        time.sleep(0.01)\n"
        "if __name__ == '__main__':\n"
        "    threading.Thread(target=kill_first_worker, daemon=True).start()\n"
        "    sys.exit(main(['tokenize', sys.argv[1], '--output', sys.argv[2], '--workers', '2']))\n"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    result = subprocess.run(
        [sys.executable, str(script), str(write_jsonl(texts)), str(tmp_path / "c"), str(delay_seconds)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1
    assert "a worker process was killed" in result.stderr.splitlines()[-1]
    assert visible_and_hidden(tmp_path) == {"run.py", "input.jsonl"}


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    source = tmp_path / "large.jsonl"
    source.write_bytes((orjson.dumps({"text": "0123456789 lorem ipsum\n" * 40_000}) + b"\n") * 60)
    process = subprocess.Popen(
        [sys.executable, "-m", "data_tools", "tokenize", str(source), "--output", str(tmp_path / "c")]
        + ["--workers", "2", "--encoder", "tiktoken"]
    )
    deadline = time.monotonic() + 30
    while not any(path.stat().st_size for path in tmp_path.glob(".c.scratch-*/spool")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    children = [child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())]
    assert len(children) == 2
    process.kill()
    process.wait(30)
    assert psutil.wait_procs(children, timeout=30)[1] == []


def test_what_a_worker_raises_reaches_the_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = EncodingSettings(text_key="text", encoder="none", check_interval=1)
    batch = LineBatch("a.jsonl", 0, 0, [Line(1, 0, b'{"text": "a"}')])
    with pytest.raises(DataError, match="a worker process ended with status 1; what it printed above says why"):
        list(encoded_batches(settings, [batch], workers=2))

    def refuse(encoder: BatchEncoder, batch: LineBatch) -> EncodedBatch:
        raise DataError("no such word")

    monkeypatch.setattr(BatchEncoder, "encode", refuse)
    ours, theirs = multiprocessing.Pipe()
    ours.send(batch)
    worker_pool._work(EncodingSettings(text_key="text", encoder="tiktoken", check_interval=1), theirs)
    error = ours.recv()
    assert isinstance(error, DataError)
    assert str(error) == "no such word"


def test_input_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, write_jsonl: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl(["a"])
    original = corpus_writer.Spool.add

    def add_and_touch(spool: corpus_writer.Spool, *arguments: np.ndarray) -> None:
        original(spool, *arguments)
        os.utime(path, ns=(1, 1))

    monkeypatch.setattr(corpus_writer.Spool, "add", add_and_touch)
    with pytest.raises(DataError, match=r"input\.jsonl: changed while it was read"):
        tokenize([path], tmp_path / "c")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed=-1 is out of range"),
        ({"seed": 2**64}, "out of range"),
        ({"workers": 0}, "workers=0"),
        ({"check_interval": 0}, "check_interval=0"),
        ({"max_document_bytes": 2**30}, "max_document_bytes=1073741824 must be 1 to 536870912"),
        ({"encoder": "fast"}, "encoder='fast' is unknown, use one of gigatoken, tiktoken"),
    ],
)
def test_options_are_checked(options: dict[str, int | str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        TokenizeOptions(**options)  # type: ignore[arg-type]


def test_prefix_must_name_a_file_and_its_folder_is_made(tmp_path: Path, write_jsonl: Callable[..., Path]) -> None:
    source = write_jsonl(["a"])
    with pytest.raises(DataError, match="names a folder"):
        tokenize([source], f"{tmp_path}/corpora/")
    tokenize([source], tmp_path / "new" / "folder" / "v1.5")
    assert Sidecar.read(tmp_path / "new" / "folder" / "v1.5").num_documents == 1
    with pytest.raises(DataError, match="no input files"):
        tokenize([], tmp_path / "c")


def test_standard_library_is_a_corpus_of_two_million_tokens(tmp_path: Path) -> None:
    collected = collect(tmp_path / "stdlib.jsonl")
    again = collect(tmp_path / "again.jsonl")
    assert collected == again
    assert (tmp_path / "stdlib.jsonl").read_bytes() == (tmp_path / "again.jsonl").read_bytes()
    records = [orjson.loads(line) for line in (tmp_path / "stdlib.jsonl").read_bytes().splitlines()]
    identifiers = [record["id"] for record in records]
    assert identifiers == sorted(set(identifiers))
    assert {"os.py", "json/decoder.py"} < set(identifiers)
    assert not any(name.startswith(("test/", "idlelib/", "encodings/", "site-packages/")) for name in identifiers)
    sidecar = tokenize([tmp_path / "stdlib.jsonl"], tmp_path / "stdlib")
    assert sidecar.num_documents == collected.num_files == len(records) > 300
    assert 1_500_000 < sidecar.num_tokens < 3_000_000
    texts = sorted(TOKENIZER.encode(record["text"]) + [END_OF_DOCUMENT] for record in records)
    assert sorted(documents_of(tmp_path / "stdlib")) == texts


def test_no_sources_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no Python sources there"):
        collect(tmp_path / "out.jsonl", tmp_path / "empty")
    assert visible_and_hidden(tmp_path) == {"empty"}
