"""Text to the ids of a model and back: Qwen's tokens, or those of the tokenizer files in a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from data_tools.tokenizer.qwen import END_OF_DOCUMENT, IM_END, IM_START, NUM_TOKENS, QwenTokenizer, check_encodable
from qwen_megatron.checkpoint.state import CheckpointState, have_qwen_tokens
from qwen_megatron.convert.config_file import read_json
from qwen_megatron.convert.hf_paths import CONFIG, inside, is_hf_folder
from qwen_megatron.errors import CheckpointError

GENERATION_CONFIG = "generation_config.json"
TOKENIZER = "tokenizer.json"


class Vocabulary(Protocol):
    """Tokens of a model.

    Attributes:
        num_tokens: Ids from here on are made by no text; rows of the embedding beyond are padding.
        end_ids: End a document or a turn.
        chat_ids: `<|im_start|>` and `<|im_end|>`, where there are such.
    """

    num_tokens: int
    end_ids: tuple[int, ...]
    chat_ids: tuple[int, int] | None

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text: names of control tokens in it are text too."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; bytes that are no character become U+FFFD."""


class QwenVocabulary(QwenTokenizer):
    """Qwen's own."""

    num_tokens = NUM_TOKENS
    end_ids: tuple[int, ...] = (END_OF_DOCUMENT,)
    chat_ids: tuple[int, int] | None = (IM_START, IM_END)


class FolderVocabulary:
    """That of a tokenizer.json.

    Args:
        folder: A Hugging Face folder.
        vocab_size: Rows of the model's embedding.
    Raises:
        CheckpointError: if the file cannot be read, or has more tokens than the model.
    """

    def __init__(self, folder: Path, vocab_size: int):
        from tokenizers import Tokenizer

        path = inside(folder, TOKENIZER)
        try:
            self.tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:
            raise CheckpointError(f"{path}: is not a tokenizer of the library tokenizers ({error})") from error
        # "<|im_end|>" in a text is text.
        self.tokenizer.encode_special_tokens = True
        known = self.tokenizer.get_vocab(with_added_tokens=True)
        self.num_tokens = max(known.values(), default=-1) + 1
        if not 0 < self.num_tokens <= vocab_size:
            raise CheckpointError(
                f"{path}: has ids up to {self.num_tokens - 1}, but the model {vocab_size} rows; it is another model's"
            )
        self.end_ids = end_ids(folder)
        chat = known.get("<|im_start|>"), known.get("<|im_end|>")
        self.chat_ids = (chat[0], chat[1]) if chat[0] is not None and chat[1] is not None else None

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text.

        Raises:
            DataError: if it holds a lone surrogate.
        """
        return list(self.tokenizer.encode(check_encodable(text), add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, control tokens by name."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))


def end_ids(folder: Path) -> tuple[int, ...]:
    """Ids that end a text, as generation_config.json says, or else config.json.

    Raises:
        CheckpointError: if they are no ids.
    """
    for name in (GENERATION_CONFIG, CONFIG):
        if not (folder / name).is_file():
            continue
        found: Any = read_json(inside(folder, name)).get("eos_token_id")
        ids = found if isinstance(found, list) else [] if found is None else [found]
        if not all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in ids):
            raise CheckpointError(f"{folder / name}: eos_token_id={found!r}: must be an id or a list of ids")
        if ids:
            return tuple(ids)
    return ()


def vocabulary_of_sources(sources: Mapping[str, Mapping[str, Any]]) -> Vocabulary | None:
    """The tokens of what samples come from; None if they are not known to be Qwen's."""
    return QwenVocabulary() if have_qwen_tokens(sources) else None


def vocabulary_of(source: Path, vocab_size: int) -> Vocabulary:
    """The tokens of a model.

    Args:
        source: A checkpoint or a Hugging Face folder.
        vocab_size: Rows of its embedding.
    Raises:
        CheckpointError: if they are not known, with what to do.
    """
    if is_hf_folder(source):
        if (source / TOKENIZER).is_file():
            return FolderVocabulary(source, vocab_size)
        has_qwen_tokens = vocab_size >= NUM_TOKENS
    else:
        has_qwen_tokens = vocab_size >= NUM_TOKENS and CheckpointState.read(source).has_qwen_tokens
    if has_qwen_tokens:
        return QwenVocabulary()
    if vocab_size < NUM_TOKENS:
        raise CheckpointError(
            f"{source}: its vocabulary has {vocab_size} rows, Qwen's tokenizer {NUM_TOKENS} tokens; text needs a model "
            "with Qwen's vocabulary, or a Hugging Face folder with its tokenizer.json; `generate --input-ids` takes ids"
        )
    raise CheckpointError(
        f"{source}: was trained on tokens that are not Qwen's; text needs a Hugging Face folder with its "
        "tokenizer.json; `generate --input-ids` takes ids"
    )
