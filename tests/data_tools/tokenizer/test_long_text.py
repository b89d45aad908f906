"""Very long lines: pieces give what the whole gives, whatever the text and wherever it is cut."""

import json
import re
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.corpus.sidecar import Sidecar
from data_tools.io import streams
from data_tools.readers import jsonl, line_blocks
from data_tools.readers.jsonl import Line, RejectedRecordError, parse_text
from data_tools.stages.tokenize_files import TokenizeOptions, tokenize
from data_tools.text.normalization import nfc
from data_tools.tokenizer import batch_encoder, long_text
from data_tools.tokenizer.qwen import QwenTokenizer
from tests.support.text_strategies import texts as any_text

TOKENIZER = QwenTokenizer()
# What may stand on either side of a cut, and what must not be cut.
FRAGMENTS = st.sampled_from(
    [
        "a",
        "Z",
        "é",
        "e\u0301",
        "\u0958",
        "क",
        "\u093c",
        "中",
        "。",
        "、",
        "ｱ",
        "한",
        "\u1112\u1161",
        "\u11ab",
        "7",
        "²",
        "½",
    ]
    + [
        "'s",
        "'",
        "'RE",
        "re",
        " ",
        "  ",
        "\t",
        "\u00a0",
        "\u2028",
        "\n",
        "\r\n",
        "\n \n",
        "!",
        "!!",
        "_",
        "-\n",
        "\U0001f600",
        "\u0300",
    ]
)
TEXTS = st.one_of(any_text(), st.lists(FRAGMENTS, min_size=1, max_size=60).map("".join))


def record(text: str, *, ascii_only: bool) -> bytes:
    return json.dumps({"id": 1, "text": text}, ensure_ascii=ascii_only).encode()


@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_pieces_normalise_and_encode_to_what_the_whole_does(strings: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_text, "_PIECE_CHARACTERS", 1)
        pieces = list(long_text.cut_pieces(strings))
    whole = nfc("".join(strings))
    assert "".join(pieces) == whole
    assert [token for piece in pieces for token in TOKENIZER.encode_normalized(piece)] == TOKENIZER.encode(whole)


@given(TEXTS)
def test_every_place_to_cut_is_the_end_of_a_word_of_the_pattern(text: str) -> None:
    whole = nfc(text)
    ids = TOKENIZER.encode(text)
    for match in long_text._CUT.finditer(text):
        cut = match.end()
        if nfc(text[cut - 1]) == text[cut - 1]:
            left, right = nfc(text[:cut]), nfc(text[cut:])
            assert left + right == whole
            assert TOKENIZER.encode_normalized(left) + TOKENIZER.encode_normalized(right) == ids


def test_what_stands_at_a_cut_is_what_the_pattern_takes_it_for() -> None:
    for character in map(chr, range(sys.maxunicode + 1)):
        if re.match(r"[^\W_]", character):
            assert unicodedata.category(character)[0] in "LN", f"U+{ord(character):04X}"
        if long_text._CUT.match(f"a{character}"):
            assert unicodedata.category(character)[0] != "L"
            assert unicodedata.combining(character) == 0
            assert not unicodedata.decomposition(character) or nfc(character) == character


@given(TEXTS, st.booleans(), st.integers(16, 40))
def test_decoding_in_pieces_is_decoding(text: str, ascii_only: bool, piece_bytes: int) -> None:
    content = record(text, ascii_only=ascii_only)
    line = Line(1, 0, bytearray(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_text, "_LONG_STRING_BYTES", 6)
        patch.setattr(long_text, "_PIECE_BYTES", piece_bytes)
        if not text:
            with pytest.raises(RejectedRecordError, match="empty"):
                long_text.LongText(line, "text")
            return
        assert "".join(long_text.LongText(line, "text").pieces()) == parse_text(Line(1, 0, content), "text")


def outcome(parse: Callable[[], str]) -> tuple[str, str]:
    try:
        return "text", parse()
    except RejectedRecordError as error:
        return "rejected", error.reason


@pytest.mark.parametrize(
    "string",
    [b"\\ud83d", b"\\ude00\\ud83d", b"\xff", b"\xe4\xb8", b"\x01", b"\\x", b"\\u12", b'" 1', b'", "y": nan, "x": "'],
)
def test_each_mistake_has_the_same_reason(string: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_text, "_LONG_STRING_BYTES", 6)
    for key in (b"text", b"other"):
        content = b'{"text": "0123456789", "' + key + b'": "' + b"long enough " * 3 + string + b'"}'
        line = Line(1, 0, content)
        kind, reason = outcome(lambda line=line: parse_text(line, "text"))
        assert kind == "rejected"
        for piece_bytes in range(16, 40):
            monkeypatch.setattr(long_text, "_PIECE_BYTES", piece_bytes)
            assert outcome(lambda line=line: "".join(long_text.LongText(line, "text").pieces())) == (kind, reason)


@given(st.binary(max_size=80), st.integers(16, 24))
def test_noise_is_taken_or_refused_alike(noise: bytes, piece_bytes: int) -> None:
    for content in (noise, b'{"text": "' + noise + b'"}', b'{"text": "0123456789' + noise, b'{"text": ' + noise + b"}"):
        line = Line(1, 0, content)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(long_text, "_LONG_STRING_BYTES", 6)
            patch.setattr(long_text, "_PIECE_BYTES", piece_bytes)
            long = outcome(lambda line=line: "".join(long_text.LongText(line, "text").pieces()))
        short = outcome(lambda line=line: parse_text(line, "text"))
        assert long == short or long[0] == short[0] == "rejected"  # Of two mistakes either may be named.


def test_word_without_an_end_and_record_of_crumbs_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_text, "_PIECE_CHARACTERS", 10)
    monkeypatch.setattr(long_text, "LONGEST_WORD", 100)
    with pytest.raises(long_text.UncuttableTextError, match="103 characters without white space after a word"):
        list(long_text.cut_pieces(["ab " * 34, "x" * 51, "x" * 51]))
    monkeypatch.setattr(long_text, "LONG_LINE_BYTES", 100)
    with pytest.raises(RejectedRecordError, match="outside of long strings, more than 100"):
        long_text.LongText(Line(1, 0, orjson.dumps({"text": "a", "x": [1] * 100})), "text")


@pytest.mark.parametrize("shuffle", [True, False])
def test_corpus_does_not_depend_on_what_counts_as_long(
    tmp_path: Path, write_jsonl: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, shuffle: bool
) -> None:
    texts: list[str | bytes] = [f"Sentence {number} of café. " * (number * 37 % 90) + "end" for number in range(120)]
    texts[40:40] = [b'{"text": "' + b"z" * 3000 + b'\\ud800"}', b'{"text": "' + b"y" * 3000, "w" * 900]
    source = write_jsonl(texts)
    options = TokenizeOptions(shuffle=shuffle)
    tokenize([source], tmp_path / "short", options)
    monkeypatch.setattr(streams, "PIECE_BYTES", 100)
    for module in (jsonl, long_text, line_blocks):
        monkeypatch.setattr(module, "LONG_LINE_BYTES", 700)
    monkeypatch.setattr(long_text, "_LONG_STRING_BYTES", 100)
    monkeypatch.setattr(long_text, "_PIECE_BYTES", 100)
    monkeypatch.setattr(long_text, "_PIECE_CHARACTERS", 60)
    monkeypatch.setattr(batch_encoder, "_PIECES_AT_ONCE", 3)
    tokenize([source], tmp_path / "long", options)
    for suffix in ("bin", "idx", "crc", "rejected.jsonl"):
        short, long = (Path(f"{tmp_path}/{name}.{suffix}").read_bytes() for name in ("short", "long"))
        if suffix == "rejected.jsonl":
            lines = [[orjson.loads(line)["line"] for line in content.splitlines()] for content in (short, long)]
            assert lines[0] == lines[1] == [41, 42]
        else:
            assert short == long
    assert Sidecar.read(tmp_path / "long").rejected == {"lone_surrogate": 1, "not_json": 1}
    assert np.fromfile(f"{tmp_path}/long.bin", dtype=np.int32).size == Sidecar.read(tmp_path / "long").num_tokens


def test_a_long_line_costs_its_bytes_and_little_more(tmp_path: Path) -> None:
    """64 MB whose `str` would take 256: a character beyond U+FFFF among ASCII. Peak against that of a short line."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from data_tools.stages.tokenize_files import tokenize\n"
        "sidecar = tokenize([sys.argv[1]], sys.argv[2])\n"
        "peak = Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]\n"
        "print(sidecar.num_documents, int(peak) * 1024)\n"
    )
    peaks = []
    for number, count in enumerate((1, 64)):
        source = tmp_path / f"{number}.jsonl"
        with source.open("wb") as stream:
            stream.write('{"text": "\U0001f600'.encode())
            for _ in range(count):
                stream.write(b"0123456 789\\n" * (1_000_000 // 13))
            stream.write(b'"}\n')
        result = subprocess.run(
            [sys.executable, "-c", code, str(source), str(tmp_path / f"c{number}")],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        documents, peak = result.stdout.split()
        assert documents == "1"
        peaks.append(int(peak))
    # The line, which grows by eighths, and some 100 MB for its pieces, whatever its length: less than the text alone.
    assert peaks[1] - peaks[0] < 4 * 64e6
