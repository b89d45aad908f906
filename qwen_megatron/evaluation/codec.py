"""Text to token ids and back, for Qwen's vocabulary and for that of a Hugging Face folder; ChatML."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from data_tools.tokenizer.qwen import NUM_TOKENS, SPECIAL_TOKENS, QwenTokenizer
from qwen_megatron.convert.hf_paths import inside, is_hf_folder
from qwen_megatron.errors import CheckpointError, DataError

TOKENIZER = "tokenizer.json"
END_OF_DOCUMENT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SYSTEM = "You are a helpful assistant."

# (role, text)
Turn = tuple[str, str]


class Codec(Protocol):
    """Text to ids and back. Text is always ordinary text: a literal control token in it is no control token."""

    @property
    def name(self) -> str:
        """What the vocabulary is known by."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids."""
        ...

    def control(self, name: str) -> int | None:
        """Id of a control token; None if the vocabulary has none of that name."""
        ...


class QwenCodec:
    """Qwen's vocabulary."""

    name = "qwen"

    def __init__(self) -> None:
        self.tokenizer = QwenTokenizer()

    def encode(self, text: str) -> list[int]:
        """See `Codec.encode`."""
        return self.tokenizer.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """See `Codec.decode`."""
        return self.tokenizer.decode(ids)

    def control(self, name: str) -> int | None:
        """See `Codec.control`."""
        return SPECIAL_TOKENS.get(name)


class FolderCodec:
    """The vocabulary of a tokenizer.json.

    Args:
        path: The file.
    Raises:
        CheckpointError: if the library `tokenizers` cannot read it.
    """

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer

        self.name = str(path)
        try:
            self.tokenizer = Tokenizer.from_file(str(path))
            # The same text must give the same ids whatever else a file was saved with.
            self.tokenizer.no_padding()
            self.tokenizer.no_truncation()
            self.tokenizer.encode_special_tokens = True
        except Exception as error:
            # The library raises bare exceptions.
            raise CheckpointError(f"{path}: is no tokenizer that can be read ({error})") from error

    def encode(self, text: str) -> list[int]:
        """See `Codec.encode`."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """See `Codec.decode`."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

    def control(self, name: str) -> int | None:
        """See `Codec.control`."""
        found = self.tokenizer.token_to_id(name)
        return None if found is None else int(found)


def codec_for(source: Path, vocab_size: int) -> Codec:
    """The codec of a model: tokenizer.json of a Hugging Face folder where there is one, Qwen's otherwise.

    Args:
        source: Checkpoint, run or Hugging Face folder.
        vocab_size: Rows of the model's vocabulary.
    Raises:
        CheckpointError: if the vocabulary has fewer rows than the tokenizer has tokens.
    """
    if is_hf_folder(source) and (source / TOKENIZER).exists():
        return FolderCodec(inside(source, TOKENIZER))
    if vocab_size < NUM_TOKENS:
        raise CheckpointError(
            f"{source}: its vocabulary has {vocab_size} rows, Qwen's tokenizer {NUM_TOKENS} tokens; text needs a model "
            f"with Qwen's vocabulary, or a Hugging Face folder with its own {TOKENIZER}"
        )
    return QwenCodec()


def needed_control(codec: Codec, name: str) -> int:
    """Id of a control token.

    Raises:
        DataError: if the vocabulary has none of that name.
    """
    found = codec.control(name)
    if found is None:
        raise DataError(f"{codec.name}: has no token {name}; the chat form needs one")
    return found


def chat_ids(codec: Codec, turns: Sequence[Turn], system: str = SYSTEM) -> list[int]:
    """Token ids of a dialogue in ChatML up to the beginning of the assistant's next turn.

    Segments are encoded apart, as in training: `<|im_start|>`, role, newline, text, `<|im_end|>`, newline.

    Args:
        codec: With `<|im_start|>` and `<|im_end|>`.
        turns: (role, text) in order, the user's last.
        system: Text of the first turn, which is the system's.
    Raises:
        DataError: if the vocabulary has no control tokens of ChatML.
    """
    start, end, newline = needed_control(codec, IM_START), needed_control(codec, IM_END), codec.encode("\n")
    ids: list[int] = []
    for role, text in (("system", system), *turns):
        ids += [start, *codec.encode(role), *newline, *codec.encode(text), end, *newline]
    return [*ids, start, *codec.encode("assistant"), *newline]
