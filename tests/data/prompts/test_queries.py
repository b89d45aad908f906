"""Queries by number: what is held out, what is too long, what is padded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_tools.chat.chat_writer import write_chat_corpus
from data_tools.chat.rendered import Rendered
from qwen_megatron.data.prompts.dataset import Queries, open_prompts
from qwen_megatron.errors import DataError

END = 1


def corpus(prefix: Path, lengths: list[int], *, kind: str = "prompts", end: int | None = END) -> Path:
    """Documents of given lengths; the first token of each is its number, from 10 on."""
    documents = []
    for number, length in enumerate(lengths):
        tokens = np.full(length, 2, dtype=np.int32)
        tokens[0] = 10 + number
        documents.append(Rendered(tokens=tokens, targets=np.zeros(length, dtype=np.bool_)))
    write_chat_corpus(prefix, documents, kind=kind, end_of_turn=end)
    return prefix


def opened(*prefixes: Path, longest: int = 6, eval_samples: int = 0, vocab_size: int = 64) -> Queries:
    blend = [str(prefix) for prefix in prefixes]
    return open_prompts(blend, longest=longest, seed=7, eval_samples=eval_samples, vocab_size=vocab_size)


def first_tokens(queries: Queries, numbers: range) -> list[int]:
    return [int(queries.tokens(queries.train_id(number))[0]) for number in numbers]


def test_an_epoch_has_each_query_that_fits_once_and_none_that_is_held_out(tmp_path: Path) -> None:
    queries = opened(corpus(tmp_path / "q", [3, 9, 6, 1, 7, 4, 5, 2]), eval_samples=2)
    # 9 and 7 tokens are too long; of the six others the last two are held out.
    assert [int(queries.tokens(held)[0]) for held in queries.eval_ids] == [16, 17]
    assert sorted(first_tokens(queries, range(4))) == [10, 12, 13, 15]
    assert sorted(first_tokens(queries, range(4, 8))) == [10, 12, 13, 15]
    assert queries.train_id(5).epoch == 1
    assert queries.train_id(5).number == 5
    assert queries.notes == [f"{tmp_path / 'q'}: 4 queries; 2 held out; 2 left out, longer than 6 tokens"]
    assert queries.sources(5)[str(tmp_path / "q")]["consumed_samples"] == 5


def test_a_batch_is_padded_and_says_how_long_and_which_queries_are(tmp_path: Path) -> None:
    queries = opened(corpus(tmp_path / "q", [3, 6]))
    batch = queries.batch([queries.train_id(0), None, queries.train_id(1)])
    lengths = batch.extras["lengths_b"].tolist()
    assert lengths[1] == 1
    assert sorted(lengths) == [1, 3, 6]
    assert batch.extras["numbers_b"].tolist() == [0, -1, 1]
    assert batch.tokens_bs.shape == (3, 6)
    assert not batch.loss_mask_bs.any()


def test_what_is_no_corpus_of_queries_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a corpus of dialogues, not of prompts"):
        opened(corpus(tmp_path / "dialogues", [3, 4], kind="dialogues"))
    with pytest.raises(DataError, match=r"holds 1 queries of at most .* = 3 tokens, but 1 are held out"):
        opened(corpus(tmp_path / "long", [3, 4]), longest=3, eval_samples=1)
    with pytest.raises(DataError, match="turns must end with one known id"):
        opened(corpus(tmp_path / "one", [3]), corpus(tmp_path / "other", [3], end=5))
    with pytest.raises(DataError, match="turns must end with one known id"):
        opened(corpus(tmp_path / "unknown", [3], end=None))
    with pytest.raises(DataError, match=r"ids up to 11, but model\.vocab_size=8"):
        opened(corpus(tmp_path / "wide", [3, 4]), vocab_size=8)
