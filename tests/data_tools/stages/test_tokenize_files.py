"""JSON Lines to a corpus: Megatron's bytes, counts, order, refusal to clash."""

import gzip
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import orjson
import pytest
import zstandard

from data_tools.corpus import document_order
from data_tools.corpus.index import CorpusIndex
from data_tools.corpus.reader import Corpus
from data_tools.corpus.sidecar import Sidecar
from data_tools.errors import DataError, RefusedError
from data_tools.readers.line_blocks import LineBlock
from data_tools.sources.python_stdlib import collect
from data_tools.stages import tokenize_encode
from data_tools.stages.tokenize_files import TokenizeOptions, tokenize
from data_tools.tokenizer import batch_encoder
from data_tools.tokenizer.encoder import Ragged, TiktokenEncoder
from data_tools.tokenizer.qwen import END_OF_DOCUMENT, FINGERPRINT, QwenTokenizer

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
    tokenize([first, second], tmp_path / "little", TokenizeOptions(tokens_in_memory=50_000))
    assert files_of(tmp_path / "one") == files_of(tmp_path / "little")
    tokenize([first, second], tmp_path / "seed", TokenizeOptions(seed=1))
    assert files_of(tmp_path / "one") != files_of(tmp_path / "seed")
    assert sorted(documents_of(tmp_path / "one")) == sorted(documents_of(tmp_path / "seed"))


def test_documents_larger_than_the_write_buffer(
    make_corpus: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"{number} " * (number * 7 % 40 + 1) for number in range(100)]
    expected = files_of(make_corpus(texts, "plain"))
    monkeypatch.setattr(document_order, "_BUFFER_TOKENS", 50)
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


class MostlyRightEncoder:
    """Right except for texts that say so."""

    def encode_batch(self, texts: Sequence[str]) -> Ragged:
        encoded = TiktokenEncoder().encode_batch(texts)
        for text, end in zip(texts, np.cumsum(encoded.lengths), strict=True):
            encoded.tokens[end - 1] += text.startswith("wrong")
        return encoded


def test_run_stops_when_a_sampled_record_differs_from_the_reference(
    make_corpus: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(batch_encoder.ENCODERS, "native", MostlyRightEncoder)
    monkeypatch.setattr(tokenize_encode, "_encoder", batch_encoder.BatchEncoder)  # Not kept for the next test.
    texts = ["right"] * 200
    texts[150] = "wrong"
    for interval in (50, 75, 1):
        with pytest.raises(
            DataError, match=r"corpus\.jsonl:151: MostlyRightEncoder and TiktokenEncoder differ at token 0"
        ):
            make_corpus(texts, check_interval=interval)
    assert visible_and_hidden(tmp_path) == {"corpus.jsonl"}
    make_corpus(texts, "unlucky", check_interval=100)
    with pytest.raises(DataError, match=r"first\.jsonl:64: .* differ"):
        make_corpus(["right"] * 63 + ["wrong"] + ["right"] * 50, "first", check_interval=1000)


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


def test_input_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, write_jsonl: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl(["a"])
    original = batch_encoder.BatchEncoder.encode_block

    def encode_and_touch(
        encoder: batch_encoder.BatchEncoder, block: LineBlock, place: batch_encoder.Place
    ) -> batch_encoder.EncodedBatch:
        os.utime(path, ns=(1, 1))
        return original(encoder, block, place)

    monkeypatch.setattr(batch_encoder.BatchEncoder, "encode_block", encode_and_touch)
    with pytest.raises(DataError, match=r"input\.jsonl: changed while it was read"):
        tokenize([path], tmp_path / "c")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed=-1 is out of range"),
        ({"seed": 2**64}, "out of range"),
        ({"workers": 0}, "workers=0"),
        ({"tokens_in_memory": 0}, "tokens_in_memory=0 must be at least 1"),
        ({"check_interval": 0}, "check_interval=0"),
        ({"max_document_bytes": 2**30}, "max_document_bytes=1073741824 must be 1 to 536870912"),
        ({"encoder": "fast"}, "encoder='fast' is unknown, use one of native, tiktoken"),
    ],
)
def test_options_are_checked(options: dict[str, int | str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        TokenizeOptions(**options)  # type: ignore[arg-type]


def test_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_bytes(b"")
    for name in ("taken/corpus", "taken/deeper/corpus"):
        with pytest.raises(DataError, match=rf"{name}: cannot be in .*/taken.*, which is a file and not a folder"):
            tokenize([tmp_path / "taken"], tmp_path / name)


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


def test_inputs_without_any_document_say_what_they_hold(tmp_path: Path, write_jsonl: Callable[..., Path]) -> None:
    text = write_jsonl([b"a line", b"another"], "a.jsonl")
    with pytest.raises(DataError, match=r"a.jsonl: none of 2 records .*line 1, not_json, .*; --format says what"):
        tokenize([text], tmp_path / "c")
    keys = write_jsonl([b'{"id": 1, "body": "x"}'], "b.jsonl")
    with pytest.raises(DataError, match=r"line 1, missing_text, .*'id', 'body'.*; --text-key names"):
        tokenize([keys], tmp_path / "c")


def test_a_file_named_twice_is_refused(tmp_path: Path, write_jsonl: Callable[..., Path]) -> None:
    source = write_jsonl(["a"])
    (tmp_path / "link.jsonl").symlink_to(source)
    for again in (source, tmp_path / "." / source.name, tmp_path / "link.jsonl"):
        with pytest.raises(RefusedError, match="is named twice"):
            tokenize([source, again], tmp_path / "c")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["input.jsonl", "link.jsonl"]
