"""Packed dialogues: what a row holds, what is held out, what is cut, and what an epoch is."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from data_tools.chat.chat_corpus import ChatCorpus
from data_tools.chat.rendered import Rendered, rendered
from data_tools.corpus.sidecar import PAIRS
from qwen_megatron.data.blended import SampleId
from qwen_megatron.data.sft.batch import packed_batch
from qwen_megatron.data.sft.dataset import HeldOutDialogues, PackedDialogues, open_dialogues
from qwen_megatron.data.sft.rows import Rows
from qwen_megatron.errors import DataError
from tests.support.dialogues import END_OF_TURN, VOCABULARY, documentation, random_dialogues, write_dialogues

LENGTH = 32


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ChatCorpus]:
    folder = tmp_path_factory.mktemp("dialogues")
    made = {"a": random_dialogues(60, LENGTH, 100, seed=1), "b": random_dialogues(25, LENGTH + 1, 100, seed=2)}
    return {
        str(write_dialogues(folder / name, dialogues)): ChatCorpus.open(folder / name)
        for name, dialogues in made.items()
    }


def packed(corpora: dict[str, ChatCorpus], eval_samples: int = 9, seed: int = 5) -> PackedDialogues:
    return PackedDialogues(corpora, [3.0, 1.0], seq_length=LENGTH, seed=seed, eval_samples=eval_samples, vocab_size=100)


def content(dialogue: Rendered) -> tuple[bytes, bytes]:
    return dialogue.tokens.tobytes(), dialogue.targets[1:].tobytes()


def unpacked(dataset: PackedDialogues, sample: SampleId) -> list[tuple[bytes, bytes]]:
    """The dialogues that a row of a batch holds, found again from its tensors."""
    batch = dataset.batch([sample])
    documents = batch.document_ids_bs[0]
    assert (documents.diff() >= 0).all(), "documents rise"
    count = len(dataset.documents_of(sample))
    assert not batch.loss_mask_bs[0, documents >= count].any(), "nothing of the padding counts"
    found = []
    for number in range(count):
        here = documents == number
        tokens, labels, mask = batch.tokens_bs[0, here], batch.labels_bs[0, here], batch.loss_mask_bs[0, here]
        assert torch.equal(tokens[1:], labels[:-1])
        whole = np.append(tokens.numpy(), labels[-1].item()).astype(np.int32)
        found.append((whole.tobytes(), mask.bool().numpy().tobytes()))
    return found


def test_a_row_holds_whole_dialogues_with_labels_of_their_own(corpora: dict[str, ChatCorpus]) -> None:
    dataset = packed(corpora)
    for number, count in enumerate(dataset.train_counts):
        corpus = dataset.corpora[number]
        rows = [SampleId(corpus=number, sample=row, epoch=0) for row in range(count)]
        found = Counter(dialogue for row in rows for dialogue in unpacked(dataset, row))
        held = {int(d) for row in dataset.eval_ids if row.corpus == number for d in dataset.documents_of(row)}
        expected = Counter(content(corpus.document(d)) for d in range(corpus.num_documents) if d not in held)
        assert found == expected
        assert len(held) == [7, 2][number], "the last ones, by weight"
        assert held == set(range(corpus.num_documents - len(held), corpus.num_documents))


def test_no_label_crosses_from_one_dialogue_into_the_next() -> None:
    """With labels shifted after packing the last token of one dialogue would learn the first of the next."""
    first, second = rendered([1, 2, 3], [True] * 3), rendered([4, 5], [True] * 2)
    batch = packed_batch([[first, second]], [None], 6)
    assert batch.tokens_bs.tolist() == [[1, 2, 4, 0, 0, 0]]
    assert batch.labels_bs.tolist() == [[2, 3, 5, 0, 0, 0]]
    assert batch.loss_mask_bs.tolist() == [[1, 1, 1, 0, 0, 0]]
    assert batch.document_ids_bs.tolist() == [[0, 0, 1, 2, 2, 2]]


def test_the_end_of_every_answer_is_learned(tmp_path: Path) -> None:
    write_dialogues(tmp_path / "d", documentation(12))
    dataset = open_dialogues([str(tmp_path / "d")], seq_length=256, seed=1, eval_samples=0, vocab_size=VOCABULARY)
    for number in range(dataset.train_counts[0]):
        batch = dataset.batch([dataset.train_id(number)])
        learned = batch.labels_bs[batch.loss_mask_bs > 0]
        count = len(dataset.documents_of(dataset.train_id(number)))
        assert (learned == END_OF_TURN).sum() == count
        assert learned[-1] == END_OF_TURN


def test_an_epoch_has_every_row_once_in_an_order_of_its_own(corpora: dict[str, ChatCorpus]) -> None:
    dataset = packed(corpora)
    drawn: dict[tuple[int, int], list[int]] = {}
    for number in range(300):
        sample = dataset.train_id(number)
        drawn.setdefault((sample.corpus, sample.epoch), []).append(sample.sample)
    whole = {key: rows for key, rows in drawn.items() if len(rows) == dataset.train_counts[key[0]]}
    assert len(whole) >= 6
    assert all(sorted(rows) == list(range(dataset.train_counts[key[0]])) for key, rows in whole.items())
    assert len({tuple(rows) for rows in whole.values()}) == len(whole)
    other = packed(corpora, seed=6)
    assert [other.train_id(n) for n in range(300)] != [dataset.train_id(n) for n in range(300)]
    assert dataset.consumed(300) == dict(Counter(dataset.prefixes[dataset.train_id(n).corpus] for n in range(300)))
    assert dataset.sources(300)[dataset.prefixes[0]]["fingerprint"] == dataset.corpora[0].fingerprint


def turns(*lengths: int) -> Rendered:
    """A dialogue of one question and so many answers, each turn of a length."""
    tokens, targets = [], []
    for number, length in enumerate(lengths):
        tokens += [90, *range(length - 2), 91]
        targets += [False] + [number % 2 == 1] * (length - 1)
    return rendered(tokens, targets)


def test_what_is_too_long_is_cut_at_the_end_of_a_turn_or_dropped_and_both_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data_tools.chat.chat_writer import write_chat_corpus

    short, long, hopeless = turns(4, 5), turns(6, 8, 5, 40), turns(40, 5)
    write_chat_corpus(tmp_path / "d", [short, long, hopeless, short], kind="dialogues", end_of_turn=91)
    read: list[int] = []
    document = ChatCorpus.document
    monkeypatch.setattr(ChatCorpus, "document", lambda self, index: read.append(index) or document(self, index))
    dataset = open_dialogues([str(tmp_path / "d")], seq_length=24, seed=1, eval_samples=0, vocab_size=100)
    assert read == [1, 2], "of dialogues that fit nothing is read"
    assert dataset.usable[0].truncated == {1: 14}
    assert dataset.usable[0].dropped == 1
    (note,) = dataset.notes
    assert note == (
        f"{tmp_path / 'd'}: 3 dialogues in 2 rows, 60.4% filled; 0 held out; 1 cut at the end of a turn; "
        "1 dropped, nothing to learn of them fits"
    )
    learned = [dataset.batch([SampleId(corpus=0, sample=row, epoch=0)]) for row in range(dataset.train_counts[0])]
    assert sum(int(batch.loss_mask_bs.sum()) for batch in learned) == 4 + 7 + 4


def test_held_out_corpora_are_packed_whole_or_in_part(corpora: dict[str, ChatCorpus]) -> None:
    for wanted, count in ((0, 85), (10, 10), (1000, 85)):
        held = HeldOutDialogues(corpora, seq_length=LENGTH, eval_samples=wanted, vocab_size=100)
        documents = [(row.corpus, d) for row in held.eval_ids for d in held.documents_of(row)]
        assert len(documents) == len(set(documents)) == count
        batch = held.batch([held.eval_ids[0], None])
        assert batch.loss_mask_bs[0].any()
        assert not batch.loss_mask_bs[1].any()


def test_what_cannot_be_packed_is_refused(corpora: dict[str, ChatCorpus], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dialogues that can be learned from in rows of .* but \d+ are held out"):
        packed(corpora, eval_samples=90)
    pairs = write_dialogues(tmp_path / "p", random_dialogues(4, 9, 50), kind=PAIRS)
    with pytest.raises(DataError, match="is a corpus of pairs, not of dialogues; make one with: qwen-data chat"):
        open_dialogues([str(pairs)], seq_length=8, seed=1, eval_samples=0, vocab_size=100)
    prefix = next(iter(corpora))
    with pytest.raises(DataError, match=r"has token ids up to 99, but model\.vocab_size=64"):
        open_dialogues([prefix], seq_length=LENGTH, seed=1, eval_samples=0, vocab_size=64)


def test_rows_of_many_dialogues_take_little_memory_and_time() -> None:
    lengths = np.random.default_rng(0).integers(2, 400, size=20_000)
    rows = Rows(np.arange(len(lengths)), lengths, 2048)
    assert rows.order.nbytes + rows.bounds.nbytes < 16 * len(lengths) + 8 * len(rows) + 100
    assert rows.filled > 0.99
    assert sorted(d for row in range(len(rows)) for d in rows[row]) == list(range(len(lengths)))
    assert len(Rows(np.zeros(0, np.int64), np.zeros(0, np.int64), 8)) == 0
