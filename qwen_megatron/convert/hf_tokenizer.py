"""Tokenizer files of a Hugging Face folder, made from Qwen's byte-pair ranks.

The ranks say which token a pair of tokens becomes, and in which order pairs are joined. The files of transformers list
the pairs themselves: the one pair that each token is made of. It is found by encoding the token's bytes with the ranks
below its own, which always leaves two pieces.
"""

from __future__ import annotations

import itertools
import json
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from data_tools.io.atomic_file import write_atomically
from data_tools.io.system_errors import naming_foreign
from data_tools.tokenizer.qwen import (
    PATTERN,
    SPECIAL_TOKENS,
    checked_vocabulary,
    read_vocabulary,
    vocab_path,
)
from qwen_megatron.config.sections.model import ModelConfig
from qwen_megatron.convert.name_map import Format

TOKENIZER_CONFIG = "tokenizer_config.json"
END_OF_TEXT = "<|endoftext|>"


def write_tokenizer(folder: Path, model: ModelConfig, hf_format: Format) -> None:
    """Writes the tokenizer files of a format.

    Args:
        folder: Where to.
        model: A model of Qwen's tokens.
        hf_format: qwen1: the released vocabulary file; the others: files that transformers reads without custom code.
    Raises:
        DataError: if the vocabulary is not installed or not the released one.
    """
    if hf_format is Format.QWEN1:
        write_atomically(folder / "qwen.tiktoken", checked_vocabulary(vocab_path()))
        config: dict[str, Any] = {"model_max_length": model.seq_length, "tokenizer_class": "QWenTokenizer"}
    else:
        tokenizer = build_tokenizer()
        with naming_foreign(folder / "tokenizer.json"):
            tokenizer.save(str(folder / "tokenizer.json"))
            tokenizer.model.save(str(folder))  # vocab.json and merges.txt
        config = qwen2_tokenizer_config(model)
    write_atomically(folder / TOKENIZER_CONFIG, (json.dumps(config, indent=2) + "\n").encode())


@cache
def build_tokenizer() -> Tokenizer:
    """Qwen's tokenizer on the library `tokenizers`; built once in a process, to be saved and not to be changed."""
    ranks = read_vocabulary(vocab_path())
    characters = byte_characters()
    # A byte as a code point first: translate() then maps whole tokens at once.
    spelled = {token: token.decode("latin-1").translate(characters) for token in ranks}
    merges = [(spelled[left], spelled[right]) for left, right in merges_of(ranks)]
    tokenizer = Tokenizer(BPE(vocab={spelled[token]: rank for token, rank in ranks.items()}, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL_TOKENS])
    return tokenizer


def byte_characters() -> dict[int, int]:
    """The printable character that stands for each byte in vocab.json and merges.txt, as in GPT-2's files.

    Printable Latin-1 characters stand for themselves, the other bytes for code points from 256 on, in order.
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: byte for byte in printable} | {byte: 256 + number for number, byte in enumerate(others)}


def merges_of(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The pair each token of more than one byte is made of, in the order of ranks.

    Args:
        ranks: Token bytes -> rank, every token reachable by joining pairs.
    Raises:
        ValueError: if a token is not the union of exactly two others.
    """
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        if len(token) == 1:
            continue
        pieces = encode_below(token, ranks, ranks[token])
        if len(pieces) != 2:
            raise ValueError(f"the token {token!r} of rank {ranks[token]} is made of {len(pieces)} pieces, not of two")
        merges.append((pieces[0], pieces[1]))
    return merges


def encode_below(token: bytes, ranks: dict[bytes, int], limit: int) -> list[bytes]:
    """Joins the pair of the lowest rank, the leftmost first, as long as there is one below `limit`."""
    pieces = [token[start : start + 1] for start in range(len(token))]
    while len(pieces) > 2:
        joined = [ranks.get(left + right, limit) for left, right in itertools.pairwise(pieces)]
        best = min(joined)
        if best >= limit:
            break
        at = joined.index(best)
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
    return pieces


def qwen2_tokenizer_config(model: ModelConfig) -> dict[str, Any]:
    """tokenizer_config.json for transformers' own `Qwen2Tokenizer`."""
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(number): {"content": text, **plain} for text, number in SPECIAL_TOKENS.items()},
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": END_OF_TEXT,
        "errors": "replace",
        "model_max_length": model.seq_length,
        "pad_token": END_OF_TEXT,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
