"""Pairs: two rows each, the place of the reward, what is held out and what is dropped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_tools.chat.chat_corpus import ChatCorpus
from data_tools.chat.rendered import Rendered, rendered
from data_tools.corpus.sidecar import PAIRS
from qwen_megatron.data.blended import SampleId
from qwen_megatron.data.preference.batch import CORPUS, END_INDEX, reward_index
from qwen_megatron.data.preference.dataset import HeldOutPairs, PreferencePairs, open_pairs
from qwen_megatron.errors import DataError
from tests.support.dialogues import random_dialogues, write_dialogues, write_preferences

START, STOP = 62, 63


def talk(*answers: int, junk: int = 0) -> Rendered:
    """Questions and answers of the given lengths, and unlearned tokens after the last."""
    tokens, targets = [], []
    for length in answers:
        tokens += [START, 1, 2, STOP, START, *range(3, 3 + length), STOP]
        targets += [False] * 5 + [True] * (length + 1)
    return rendered(tokens + [STOP] * junk, targets + [False] * junk)


def test_the_reward_is_read_at_the_end_of_the_last_answer() -> None:
    """The token that ends turns stands in every turn; what comes after the last answer has no say."""
    for whole in (talk(4), talk(2, 5), talk(1, 1, 7)):
        last = len(whole) - 1
        assert reward_index(whole, STOP) == last
        assert whole.tokens[last] == STOP
    assert reward_index(talk(2, 5, junk=4), STOP) == len(talk(2, 5)) - 1
    # An unanswered question, which is not learned.
    question = rendered([*talk(3).tokens.tolist(), START, 1, 2, STOP], [*talk(3).targets.tolist(), *[False] * 4])
    assert reward_index(question, STOP) == len(talk(3)) - 1
    # Labels of the released script: line ends are learned too.
    line = rendered([*talk(3).tokens.tolist(), 9], [*talk(3).targets.tolist(), True])
    assert reward_index(line, STOP) == len(talk(3)) - 1
    assert reward_index(rendered([5, 6, 7], [False, True, False]), None) == 1
    assert reward_index(rendered([5, 6, 7], [False, False, False]), STOP) == 2


@pytest.fixture(scope="module")
def prefixes(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("pairs")
    return [str(write_preferences(folder / name, count, 64, 24, seed=count)) for name, count in (("a", 30), ("b", 10))]


def test_a_pair_is_two_rows_chosen_first(prefixes: list[str]) -> None:
    dataset = open_pairs(prefixes, seq_length=32, seed=3, eval_samples=8, vocab_size=64)
    assert dataset.shape(3).micro_batch_size == 6
    assert dataset.train_counts == [24, 8]
    assert [(i.corpus, i.sample) for i in dataset.eval_ids] == [*((0, k) for k in range(24, 30)), (1, 8), (1, 9)]
    ids = [SampleId(corpus=1, sample=4, epoch=0), None, SampleId(corpus=0, sample=0, epoch=0)]
    batch = dataset.batch(ids)
    for row, (corpus, document) in enumerate([(1, 8), (1, 9), (None, None), (None, None), (0, 0), (0, 1)]):
        if corpus is None:
            assert batch.extras[END_INDEX][row] == -1
            assert not batch.loss_mask_bs[row].any()
            continue
        expected = dataset.corpora[corpus].document(document)
        assert batch.tokens_bs[row, : len(expected)].tolist() == expected.tokens.tolist()
        assert not batch.tokens_bs[row, len(expected) :].any(), "filled up on the right"
        assert batch.extras[END_INDEX][row] == len(expected) - 1
        assert batch.extras[CORPUS][row] == corpus
    assert batch.row_names == (*(f"{i}.{side}" for i in ids for side in (0, 1)),), "rows drop out on their own"
    blank = dataset.batch_without_tokens(ids)
    assert blank is not None
    assert blank.tokens_bs.shape == batch.tokens_bs.shape


def test_a_pair_that_does_not_fit_is_dropped_and_counted(tmp_path: Path) -> None:
    long = talk(40)
    documents = [talk(3), talk(4), long, talk(3), talk(5), long, talk(1), talk(2)]
    write_dialogues(tmp_path / "p", documents, kind=PAIRS)
    dataset = open_pairs([str(tmp_path / "p")], seq_length=16, seed=3, eval_samples=0, vocab_size=64)
    assert dataset.usable[0].tolist() == [0, 3]
    assert dataset.notes == [f"{tmp_path / 'p'}: 2 pairs; 0 held out; 2 dropped, longer than 16 tokens"]
    chosen, rejected = dataset.pair(SampleId(corpus=0, sample=1, epoch=0))
    assert (chosen.tokens.tolist(), rejected.tokens.tolist()) == (talk(1).tokens.tolist(), talk(2).tokens.tolist())


def test_every_pair_is_seen_once_an_epoch(prefixes: list[str]) -> None:
    dataset = open_pairs(prefixes, seq_length=32, seed=3, eval_samples=8, vocab_size=64)
    seen = [dataset.train_id(number) for number in range(40)]
    assert sorted({s.sample for s in seen if s.corpus == 0 and s.epoch == 0}) == list(range(24))
    consumed = dataset.consumed(320)
    assert consumed[prefixes[0]] == pytest.approx(240, abs=2)
    assert sum(consumed.values()) == 320


def test_held_out_pairs(prefixes: list[str]) -> None:
    corpora = {prefix: ChatCorpus.open(prefix) for prefix in prefixes}
    assert len(HeldOutPairs(corpora, seq_length=32, eval_samples=0).eval_ids) == 40
    few = HeldOutPairs(corpora, seq_length=32, eval_samples=8).eval_ids
    assert np.bincount([sample.corpus for sample in few]).tolist() == [6, 2]


def test_a_corpus_of_dialogues_is_refused(tmp_path: Path, prefixes: list[str]) -> None:
    write_dialogues(tmp_path / "d", random_dialogues(4, 9, 50))
    with pytest.raises(DataError, match="is a corpus of dialogues, not of pairs; make one with: qwen-data chat"):
        open_pairs([str(tmp_path / "d")], seq_length=16, seed=1, eval_samples=0, vocab_size=64)
    with pytest.raises(DataError, match="holds 30 pairs that fit"):
        PreferencePairs(
            {prefixes[0]: ChatCorpus.open(prefixes[0])}, None, seq_length=32, seed=1, eval_samples=30, vocab_size=64
        )
