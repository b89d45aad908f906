"""Lines of JSON to ids in the kernel, against parsing, normalising and encoding them one by one."""

import json
import random
from collections.abc import Iterator, Sequence

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools import _native
from data_tools.errors import DataError
from data_tools.readers import line_blocks
from data_tools.readers.jsonl import MAX_DOCUMENT_BYTES, Line, read_lines
from data_tools.readers.line_blocks import LineBlock, lines_of, read_blocks
from data_tools.readers.record import BadRecord
from data_tools.tokenizer import batch_encoder
from data_tools.tokenizer.batch_encoder import BatchEncoder, EncodedBatch, EncodingSettings, Place
from data_tools.tokenizer.encoder import qwen_encoder
from tests.support.text_strategies import texts as any_text

PLACE = Place("f.jsonl", 0, 0, 0)


def batch_encoder_of(**changed: object) -> BatchEncoder:
    values = {"text_key": "text", "encoder": "native", "check_interval": 1000, "max_line_bytes": MAX_DOCUMENT_BYTES}
    return BatchEncoder(EncodingSettings(**{**values, **changed}))  # type: ignore[arg-type]


ENCODER = batch_encoder_of(check_interval=1)  # Every record is compared with tiktoken.


def outcome(batch: EncodedBatch) -> tuple[dict[int, list[int]], list[BadRecord], int]:
    """Ids by the offset of the record, what was rejected, how many records there were."""
    documents: dict[int, list[int]] = {}
    end = 0
    for offset, length in zip(batch.offsets.tolist(), batch.lengths.tolist(), strict=True):
        documents[offset] = batch.tokens[end : end + length].tolist()
        end += length
    assert end == len(batch.tokens)
    return documents, batch.rejections, batch.num_records


def samples(batch: EncodedBatch) -> list[tuple[int, str, list[int]]]:
    return sorted((line, text, tokens.tolist()) for line, text, tokens in batch.samples)


def assert_as_one_by_one(content: bytes, encoder: BatchEncoder = ENCODER, number: int = 1) -> int:
    """Returns how many lines the kernel left alone."""
    max_line_bytes = encoder._settings.max_line_bytes
    num_lines, num_records = _native.count_records(content, number == 1, max_line_bytes)
    block = LineBlock(number, 7000, content, num_records)
    assert num_lines == content.count(b"\n")
    fast = encoder.encode_block(block, PLACE)
    assert fast.num_records == num_records
    slow = encoder.encode_lines(list(lines_of(block, max_line_bytes)), PLACE)
    assert outcome(fast) == outcome(slow)
    assert samples(fast) == samples(slow)
    encoder.check(PLACE, fast.samples)
    key = encoder._settings.text_key
    return len(qwen_encoder().kernel.encode_lines(content, key, number == 1, max_line_bytes).odd)


def line(text: str, **fields: object) -> bytes:
    return orjson.dumps({**fields, "text": text})


PLAIN = [
    b'{"text":"a"}',
    b' \t{ "text" \r: "a b" , "n" : null } ',
    b'{"id":1,"score":-0.5e-3,"text":"x","tags":["a",{"b":[]},{}],"ok":true,"no":false}',
    b'{"n":123456789012345678,"e":1E+05,"z":0,"m":-0,"text":"x"}',
    b'{"text":"\\u0041\\n\\t\\"\\\\\\/\\b\\f\\r \\ud83d\\ude00 \\u00e9\\u4f60\\u0000"}',
    '{"text":"你好 é — 🙂 नमस्ते שלום","名":"猫"}'.encode(),
    b'{"meta":{"text":"inner","text":1},"text":"outer"}',
    line("0123456789 lorem ipsum\n" * 30, id="x" * 100),
    '{"text":"مرحبًا بِكُم"}'.encode(),  # Marks in canonical order.
]
# Well-formed or not, not plain: duplicates, names with escapes, deep nesting, huge numbers, texts that are not in NFC.
ODD = [
    b'{"text":"a","text":"b"}',
    b'{"text":"a","te\\u0078t":"b"}',
    b'{"te\\u0078t":"b"}',
    b'{"text":"a","n":12345678901234567890123}',
    b'{"text":"a","n":1e999}',
    b'{"text":"a","n":01}',
    b'{"text":"a","n":1.}',
    b'{"text":"a","n":.5}',
    b'{"text":"a","n":+1}',
    b'{"text":"a","n":-}',
    b'{"text":"a","n":1e}',
    b'{"text":"a","d":' + b"[" * 40 + b"]" * 40 + b"}",
    b'{"text":"a","d":' + b"[" * 2000 + b"]" * 2000 + b"}",
    b'{"text":"e\\u0301"}',
    '{"text":"cafe\u0301 \u1112\u1161\u11ab"}'.encode(),
    '{"text":"\u0958\u2126\u0344"}'.encode(),
    '{"text":"a\u0316\u0301 \u05b0\u0591"}'.encode(),
    b'{"text":""}',
    b'{"text":1}',
    b'{"text":null}',
    b'{"text":["a"]}',
    b'{"Text":"a"}',
    b"{}",
    b"[]",
    b'"text"',
    b"null",
    b'{"text":"a"}}',
    b'{"text":"a"} {"text":"b"}',
    b'{"text":"a",}',
    b'{"text":"a"',
    b'{"text":"a',
    b'{"text":"a\\',
    b'{"text":"a\\u12',
    b'{"text":"a\\x"}',
    b'{"text":"\\ud800"}',
    b'{"text":"\\udc00\\ud800"}',
    b'{"text":"\\ud800\\u0041"}',
    b'{"text":"a","x":"\\ud800"}',
    b'{"text":"a\x01"}',
    b'{"text":"a\tb"}',
    b'{"text":"\xff"}',
    b'{"text":"\xc0\x80"}',
    b'{"text":"\xed\xa0\x80"}',
    b'{"text":"\xf4\x90\x80\x80"}',
    b'{"text":"\xe4\xb8"}',
    b'{"text":"a","x":"\xe4\xb8"}',
    b'{"text":"a"}\xff',
    b"{'text':'a'}",
    b'{text:"a"}',
    b'{"text":"a" "b":1}',
    b'{"text" "a"}',
    b'{"text":NaN}',
    b'{"text":"a","n":nul}',
    b'{"text":"a","n":tru',
    b'{,"text":"a"}',
    b"not json",
    b"\x0b\x0c{",
    b'\xef\xbb\xbf{"text":"a"}',
]


def test_plain_records_are_taken_and_odd_ones_left_to_the_parser() -> None:
    assert assert_as_one_by_one(b"\n".join(PLAIN)) == 0
    for odd in ODD:
        for ending in (b"", b"\n", b"\r\n"):
            assert assert_as_one_by_one(PLAIN[0] + b"\n" + odd + ending + PLAIN[1] * bool(ending)) == 1, odd
    assert assert_as_one_by_one(b"\n".join([*PLAIN, *ODD, *reversed(PLAIN)])) == len(ODD)


def test_blank_lines_marks_and_line_ends() -> None:
    mark = b"\xef\xbb\xbf"
    blanks = b"\n\r\n  \t\n\x0b\x0c\r\n"
    assert assert_as_one_by_one(mark + PLAIN[0] + b"\r\n" + blanks + PLAIN[1] + b"\n" + blanks) == 0
    assert assert_as_one_by_one(mark + b"\n" + PLAIN[0]) == 0
    assert assert_as_one_by_one(mark + PLAIN[0] + b"\n" + PLAIN[0], number=5) == 1
    assert assert_as_one_by_one(PLAIN[0] + b"\r\r\n" + PLAIN[0] + b"\r") == 0
    assert assert_as_one_by_one(blanks) == 0
    short = batch_encoder_of(max_line_bytes=20)
    assert assert_as_one_by_one(line("x" * 9) + b"\n" + line("x" * 10) + b"\n" + b" " * 21 + b"\n", short) == 2


@given(st.lists(st.tuples(any_text(), st.booleans(), st.booleans()), max_size=4))
@settings(max_examples=50, deadline=None)
def test_any_text_however_it_is_written(records: list[tuple[str, bool, bool]]) -> None:
    lines = []
    for text, ascii_only, spaced in records:
        separators = (", ", ": ") if spaced else (",", ":")
        lines.append(json.dumps({"a": text, "text": text}, ensure_ascii=ascii_only, separators=separators).encode())
    assert_as_one_by_one(b"\n".join(lines))


def test_damaged_lines_are_taken_or_refused_alike() -> None:
    """A strict parser and the kernel: what the kernel takes, the parser takes, with the same text."""
    chooser = random.Random(3)
    sound = [*PLAIN * 6, line("lorem ipsum dolor sit amet, " * 5, n=1.5, s=["x", None]), *ODD]
    lines = []
    for _ in range(2000):
        damaged = bytearray(chooser.choice(sound))
        for _ in range(chooser.randrange(1, 4)):
            place = chooser.randrange(len(damaged) + 1)
            byte = chooser.choice(b'"\\{}[]:,0u1e-. \ttextn\xe4\xb8\x80\x00\xcc\x81')
            damaged[place : place + chooser.randrange(2)] = bytes([byte]) if chooser.random() < 0.7 else b""
            if not damaged:
                break
        lines.append(bytes(damaged).replace(b"\n", b" "))
    num_odd = assert_as_one_by_one(b"\n".join(lines))
    assert 150 < len(lines) - num_odd < 1850


def test_other_keys_have_the_text() -> None:
    for key in ("content", "名", "a b", ""):
        record = json.dumps({"text": "no", key: "yes", "z": 1}, ensure_ascii=False).encode()
        encoder = batch_encoder_of(text_key=key, check_interval=1)
        assert assert_as_one_by_one(record, encoder) == 0
        (ids,) = outcome(encoder.encode_block(LineBlock(1, 0, record, 1), PLACE))[0].values()
        assert ids == qwen_encoder().encode_batch(["yes"]).tokens.tolist()


def test_the_sample_is_parsed_and_encoded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"\n".join([b"", *[line("right")] * 5, line("wrong"), line("right")])
    monkeypatch.setattr(batch_encoder, "parse_text", lambda line, key: "other" if b"wrong" in line.content else "right")
    sparse = batch_encoder_of(check_interval=10)
    assert sparse.encode_block(LineBlock(11, 0, content, 7), Place("f.jsonl", 2, 1, 0)).samples == []
    for first, all_checked in ((5, 0), (0, 6)):
        place = Place("f.jsonl", 2, first, all_checked)
        found = sparse.encode_block(LineBlock(11, 0, content, 7), place).samples
        with pytest.raises(DataError, match=r"f\.jsonl:15: NativeEncoder and TiktokenEncoder differ at token 0"):
            sparse.check(place, found)


class Pieces:
    """A stream that comes in pieces of one size."""

    def __init__(self, content: bytes, size: int) -> None:
        self._pieces = [content[start : start + size] for start in range(0, len(content), size)]

    def pieces(self) -> Iterator[bytes]:
        yield from self._pieces


def lines_by_blocks(content: bytes, size: int, max_line_bytes: int) -> list[Line]:
    found: list[Line] = []
    for block in read_blocks(Pieces(content, size), max_line_bytes):
        found += [block] if isinstance(block, Line) else lines_of(block, max_line_bytes)
    return found


@given(st.lists(st.sampled_from([0, 1, 3, 9, 10, 11, 25, 60]), max_size=8), st.integers(1, 10), st.booleans())
def test_blocks_have_the_lines_of_the_file(lengths: Sequence[int], size: int, ended: bool) -> None:
    content = b"\n".join(b"%x" % (length % 16) * length for length in lengths) + b"\n" * ended
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(line_blocks, "LONG_LINE_BYTES", 10)
        patch.setattr(line_blocks, "_BLOCK_BYTES", 30)
        for max_line_bytes in (5, 20, 40):
            expected = [
                one._replace(content=bytes(one.content)) for one in read_lines(Pieces(content, 1000), max_line_bytes)
            ]
            found = lines_by_blocks(content, size, max_line_bytes)
            assert [one._replace(content=bytes(one.content)) for one in found] == expected
            blocks = list(read_blocks(Pieces(content, size), max_line_bytes))
            assert all(len(block.content) <= 80 for block in blocks)
            long = [one for one in blocks if isinstance(one, Line)]
            assert len(long) == sum(length > 10 for length in lengths)
