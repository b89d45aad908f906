"""Qwen's tokenizer against the vectors of the released one."""

import hashlib
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.errors import DataError
from data_tools.tokenizer.qwen import (
    END_OF_DOCUMENT,
    FINGERPRINT,
    IM_END,
    IM_START,
    NUM_TOKENS,
    SPECIAL_TOKENS,
    QwenTokenizer,
    read_vocabulary,
    vocab_path,
)

TOKENIZER = QwenTokenizer()


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("\n", [198]),
        ("1234567", [16, 17, 18, 19, 20, 21, 22]),
        ("Hello world", [9707, 1879]),
        ("你好", [108386]),
        ("我是一只猫", [35946, 99639, 91680, 100472]),
        ("  \n\n  x", [18611, 220, 856]),
        ("a\r\n\r\nb", [64, 871, 65]),
        ('print("<|endoftext|>")', [1350, 9639, 91, 8691, 723, 427, 91, 82598]),
        ("system", [8948]),
        ("user", [872]),
        ("assistant", [77091]),
        ("", []),
    ],
)
def test_released_vectors(text: str, ids: list[int]) -> None:
    assert TOKENIZER.encode(text) == ids
    assert TOKENIZER.decode(ids) == text


def test_cut_character_decodes_to_replacement() -> None:
    assert TOKENIZER.decode([51461]) == " \ufffd"
    assert TOKENIZER.decode([51461, 117]) == " 根"


def test_special_tokens() -> None:
    assert (END_OF_DOCUMENT, IM_START, IM_END, NUM_TOKENS) == (151643, 151644, 151645, 151851)
    assert SPECIAL_TOKENS["<|extra_0|>"] == 151646
    assert SPECIAL_TOKENS["<|extra_204|>"] == 151850
    assert sorted(SPECIAL_TOKENS.values()) == list(range(151643, 151851))
    assert TOKENIZER.decode([151644, 77091, 198, 9707, 0, 151645, 198]) == "<|im_start|>assistant\nHello!<|im_end|>\n"


@pytest.mark.parametrize("name", ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|extra_7|>"])
def test_special_tokens_spelled_in_text_stay_text(name: str) -> None:
    ids = TOKENIZER.encode(f"before {name} after")
    assert max(ids) < END_OF_DOCUMENT
    assert TOKENIZER.decode(ids) == f"before {name} after"


def test_text_is_normalized_to_nfc() -> None:
    assert TOKENIZER.encode("cafe\u0301") == TOKENIZER.encode("caf\u00e9")


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_decode_inverts_encode_up_to_nfc(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("number", [151851, 151935, 10**9, -1])
def test_padding_ids_cannot_be_decoded(number: int) -> None:
    with pytest.raises(DataError, match=f"id {number} at position 1 "):
        TOKENIZER.decode([198, number])


def test_lone_surrogate_is_refused_and_named() -> None:
    with pytest.raises(DataError, match=r"character 2 of the text is the lone surrogate U\+D800"):
        TOKENIZER.encode("ab\ud800")


def test_white_space_that_overflows_tiktoken_is_refused() -> None:
    with pytest.raises(DataError, match="400000 white-space"):
        TOKENIZER.encode("x" + " " * 1_000_000)
    assert TOKENIZER.decode(TOKENIZER.encode(" " * 399_999)) == " " * 399_999


def test_vocabulary_is_the_released_one(tmp_path: Path) -> None:
    content = vocab_path().read_bytes()
    assert f"qwen-{hashlib.sha256(content).hexdigest()}" == FINGERPRINT
    assert FINGERPRINT.startswith("qwen-b2b1b8df")
    ranks = read_vocabulary(vocab_path())
    assert sorted(ranks.values()) == list(range(151643))
    changed = tmp_path / "qwen.tiktoken"
    changed.write_bytes(content[:-10])
    with pytest.raises(DataError, match="is not Qwen's vocabulary"):
        read_vocabulary(changed)
