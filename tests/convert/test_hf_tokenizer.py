"""The tokenizer files of an export: transformers encodes as training did."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from data_tools.tokenizer.qwen import SPECIAL_TOKENS, QwenTokenizer, read_vocabulary, vocab_path
from qwen_megatron.config.presets import PRESETS
from qwen_megatron.convert.hf_tokenizer import byte_characters, merges_of, write_tokenizer
from qwen_megatron.convert.name_map import Format

QWEN = QwenTokenizer()

# As in the facts published with the model's tokenizer.
VECTORS = {
    "\n": [198],
    "1234567": [16, 17, 18, 19, 20, 21, 22],
    "Hello world": [9707, 1879],
    "你好": [108386],
    "我是一只猫": [35946, 99639, 91680, 100472],
    "  \n\n  x": [18611, 220, 856],
    "a\r\n\r\nb": [64, 871, 65],
    'print("<|endoftext|>")': [1350, 9639, 91, 8691, 723, 427, 91, 82598],
    "system": [8948],
    "user": [872],
    "assistant": [77091],
}
# Random code points hardly ever form words; pieces of scripts and the pattern's special cases do.
PIECES = st.sampled_from(
    ["'s", "'LL", "\u017f", "'\u017f", "1", "２", "Ⅷ", "½", "abc", "É", "e\u0301", "\u1e9b\u0323", "Ω", "ﬁ", "ß", "İ"]
    + ["नमस्ते", "你好", "한국어", "ไทย", "שלום", "مرحبا", "🙂", "👩\u200d🚀", "!!", "__", "<|im_end|>", "--", "="]
    + [" ", "  ", "\n", "\r\n", "\t", "\u3000", "\u00a0", "\u200d", "\x00", "\ufeff", "\u0085", "\u2028", "\u1680"]
)
TEXT = st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.lists(PIECES, max_size=30).map("".join))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(out, PRESETS["tiny"], Format.QWEN2)
    return out


@pytest.fixture(scope="module")
def auto(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


@pytest.fixture(scope="module")
def plain(folder: Path) -> Tokenizer:
    """As programs without transformers read it: tokenizer.json alone decides."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    return tokenizer


def encode(tokenizer: Any, text: str) -> list[int]:
    """As ordinary text; transformers would take the names of control tokens in a text for the tokens."""
    return list(tokenizer.encode(text, split_special_tokens=True))


@pytest.mark.parametrize("text", VECTORS)
def test_known_vectors(text: str, auto: Any) -> None:
    assert encode(auto, text) == VECTORS[text]


@given(TEXT)
@settings(max_examples=1000, deadline=None)
@example("’S ſ'ſ don'T")
@example("\u0344\u0958 가\u11a8")
def test_ids_are_those_of_training(auto: Any, plain: Tokenizer, text: str) -> None:
    expected = QWEN.encode(text)
    assert encode(auto, text) == expected
    assert plain.encode(text).ids == expected


def test_ids_of_source_code_are_those_of_training(auto: Any) -> None:
    for module in (json, dataclasses):
        text = Path(str(module.__file__)).read_text(encoding="utf-8")
        assert encode(auto, text) == QWEN.encode(text)


@given(st.lists(st.integers(0, 151850), max_size=40))
@settings(max_examples=300, deadline=None)
@example([51461])
@example([51461, 117])
def test_ids_are_decoded_as_in_training(auto: Any, plain: Tokenizer, ids: list[int]) -> None:
    assert auto.decode(ids) == plain.decode(ids, skip_special_tokens=False) == QWEN.decode(ids)


def test_every_control_token_has_its_id(auto: Any) -> None:
    assert {text: auto.convert_tokens_to_ids(text) for text in SPECIAL_TOKENS} == SPECIAL_TOKENS
    assert auto.encode('print("<|endoftext|>")') == [1350, 445, 151643, 899]
    assert auto.encode("<|im_start|>user\n") == [151644, 872, 198]
    assert (auto.eos_token_id, auto.pad_token_id, auto.bos_token_id) == (151643, 151643, None)
    assert len(auto) == 151851
    assert auto.model_max_length == PRESETS["tiny"].seq_length


def test_vocabulary_and_merges_alone_give_the_same_tokenizer(folder: Path, tmp_path: Path) -> None:
    """Programs that do not read tokenizer.json build the tokenizer from the two older files."""
    from transformers import AutoTokenizer

    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    for text, ids in VECTORS.items():
        assert encode(tokenizer, text) == ids
    assert {text: tokenizer.convert_tokens_to_ids(text) for text in SPECIAL_TOKENS} == SPECIAL_TOKENS


def test_every_token_is_made_of_two_others() -> None:
    ranks = read_vocabulary(vocab_path())
    merges = merges_of(ranks)
    assert len(merges) == 151643 - 256
    assert all(max(ranks[left], ranks[right]) < ranks[left + right] for left, right in merges)
    assert sorted(byte_characters()) == list(range(256))
    assert len(set(byte_characters().values())) == 256


def test_a_vocabulary_of_parts_that_cannot_be_joined_is_refused() -> None:
    with pytest.raises(ValueError, match=r"b'abc' of rank 3 is made of 3 pieces"):
        merges_of({b"a": 0, b"b": 1, b"c": 2, b"abc": 3})


def test_qwen1_gets_the_released_vocabulary(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, PRESETS["tiny"], Format.QWEN1)
    assert (tmp_path / "qwen.tiktoken").read_bytes() == vocab_path().read_bytes()
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config == {"model_max_length": 256, "tokenizer_class": "QWenTokenizer"}
