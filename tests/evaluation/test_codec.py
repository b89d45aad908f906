"""Vocabularies: Qwen's and that of a folder; ChatML."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_tools.tokenizer.qwen import NUM_TOKENS
from qwen_megatron.errors import CheckpointError, DataError
from qwen_megatron.evaluation.codec import FolderCodec, QwenCodec, chat_ids, codec_for


def write_tokenizer(folder: Path, *special: str) -> Path:
    """A tokenizer of words, in a folder that looks like Hugging Face's."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"[unk]": 0, "a": 1, "b": 2, "user": 3}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[unk]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(special))
    tokenizer.enable_truncation(1)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text("{}", encoding="utf-8")
    return folder


def test_a_folder_has_its_own_vocabulary(tmp_path: Path) -> None:
    codec = codec_for(write_tokenizer(tmp_path, "<|endoftext|>"), vocab_size=5)
    assert isinstance(codec, FolderCodec)
    assert codec.encode("a b c") == [1, 2, 0]
    assert codec.decode([1, 2]) == "a b"
    assert codec.control("<|endoftext|>") == 4
    assert codec.encode("<|endoftext|>") == [0]
    with pytest.raises(DataError, match=r"tokenizer.json: has no token <\|im_start\|>; the chat form needs one"):
        chat_ids(codec, [("user", "a")])


def test_others_have_qwens(tmp_path: Path) -> None:
    assert isinstance(codec_for(tmp_path, vocab_size=NUM_TOKENS), QwenCodec)
    with pytest.raises(CheckpointError, match="its vocabulary has 160 rows, Qwen's tokenizer 151851 tokens"):
        codec_for(tmp_path, vocab_size=160)


def test_a_tokenizer_that_cannot_be_read(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"tokenizer.json: is no tokenizer that can be read"):
        codec_for(tmp_path, vocab_size=5)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.json").symlink_to("/etc/passwd")
    with pytest.raises(CheckpointError, match="is a link to /etc/passwd, outside of the folder"):
        codec_for(tmp_path, vocab_size=5)


def test_chatml() -> None:
    ids = chat_ids(QwenCodec(), [("user", "Hi<|im_end|>"), ("assistant", "Hello!"), ("user", "a")])
    assert ids[:3] == [151644, 8948, 198]
    assert QwenCodec().decode(ids) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|><|im_end|>\n"
        "<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    )
    # What a user writes is text.
    assert ids.count(151645) == 4
    assert ids[ids.index(9707) - 3 :][:7] == [151644, 77091, 198, 9707, 0, 151645, 198]
