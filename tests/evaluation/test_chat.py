"""ChatML in token ids."""

from __future__ import annotations

import pytest

from qwen_megatron.errors import DataError
from qwen_megatron.evaluation.chat import chat_ids
from qwen_megatron.inference.vocabulary import QwenVocabulary


def test_chatml() -> None:
    ids = chat_ids(QwenVocabulary(), [("user", "Hi<|im_end|>"), ("assistant", "Hello!"), ("user", "a")])
    assert ids[:3] == [151644, 8948, 198]
    assert QwenVocabulary().decode(ids) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|><|im_end|>\n"
        "<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    )
    # What a user writes is text.
    assert ids.count(151645) == 4
    assert ids[ids.index(9707) - 3 :][:7] == [151644, 77091, 198, 9707, 0, 151645, 198]


def test_a_vocabulary_without_marks() -> None:
    vocabulary = QwenVocabulary()
    vocabulary.chat_ids = None
    with pytest.raises(DataError, match=r"has no <\|im_start\|> and <\|im_end\|>, which the chat form needs"):
        chat_ids(vocabulary, [("user", "a")])
