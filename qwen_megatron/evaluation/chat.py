"""ChatML in token ids."""

from __future__ import annotations

from collections.abc import Sequence

from qwen_megatron.errors import DataError
from qwen_megatron.inference.vocabulary import Vocabulary

IM_START, IM_END = "<|im_start|>", "<|im_end|>"
SYSTEM = "You are a helpful assistant."

# (role, text)
Turn = tuple[str, str]


def chat_marks(vocabulary: Vocabulary) -> tuple[int, int]:
    """Ids of `<|im_start|>` and `<|im_end|>`.

    Raises:
        DataError: if the vocabulary has none.
    """
    if vocabulary.chat_ids is None:
        raise DataError(f"the model's vocabulary has no {IM_START} and {IM_END}, which the chat form needs")
    return vocabulary.chat_ids


def chat_ids(vocabulary: Vocabulary, turns: Sequence[Turn], system: str = SYSTEM) -> list[int]:
    """Token ids of a dialogue in ChatML up to the beginning of the assistant's next turn.

    Segments are encoded apart, as in training: `<|im_start|>`, role, newline, text, `<|im_end|>`, newline.

    Args:
        vocabulary: With marks of ChatML.
        turns: (role, text) in order, the user's last.
        system: Text of the first turn, which is the system's.
    Raises:
        DataError: if the vocabulary has no marks of ChatML.
    """
    (start, end), newline = chat_marks(vocabulary), vocabulary.encode("\n")
    ids: list[int] = []
    for role, text in (("system", system), *turns):
        ids += [start, *vocabulary.encode(role), *newline, *vocabulary.encode(text), end, *newline]
    return [*ids, start, *vocabulary.encode("assistant"), *newline]
