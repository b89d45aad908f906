"""Samples of a blend: what is held out, what an epoch holds, what the cursor says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_megatron.data.blended import SampleId
from qwen_megatron.data.pretraining.blending import CYCLE
from qwen_megatron.data.pretraining.dataset import BlendedDataset, HeldOutDataset, open_dataset
from qwen_megatron.data.pretraining.plan import corpus_plans, plan_lines, plan_warnings
from qwen_megatron.errors import DataError

LENGTH = 8
MakeCorpus = Callable[..., Any]


@pytest.fixture
def two(memory_corpus: MakeCorpus) -> BlendedDataset:
    """400 tokens at weight 3 and 230 at weight 1: 49 and 28 samples, 8 of them held out."""
    corpora = {"a": memory_corpus("content a", 400), "b": memory_corpus("content b", 230)}
    return BlendedDataset(corpora, [3.0, 1.0], seq_length=LENGTH, seed=5, eval_samples=8)


def test_counts_leave_the_last_samples_out(two: BlendedDataset) -> None:
    # 400 tokens hold 49 samples of 8 and a label each: the last label of a 50th would be missing.
    assert two.train_counts == [49 - 6, 28 - 2]
    assert [(sample.corpus, sample.sample) for sample in two.eval_ids] == [
        *((0, number) for number in range(43, 49)),
        *((1, number) for number in range(26, 28)),
    ]


def test_last_sample_has_its_last_label(memory_corpus: MakeCorpus) -> None:
    for num_tokens, samples in ((16, 1), (17, 2), (24, 2), (25, 3)):
        dataset = BlendedDataset({"a": memory_corpus("a", num_tokens)}, None, seq_length=8, seed=0, eval_samples=0)
        assert dataset.train_counts == [samples]
        tokens = dataset.tokens(SampleId(corpus=0, sample=samples - 1, epoch=0))
        assert tokens.tolist() == list(range(8 * (samples - 1), 8 * samples + 1))


def test_sample_carries_the_label_of_its_last_token(two: BlendedDataset) -> None:
    rows = [two.tokens(SampleId(corpus=0, sample=number, epoch=0)) for number in range(49)]
    assert all(row.shape == (LENGTH + 1,) and row.dtype == np.int64 for row in rows)
    for row, following in pairwise(rows):
        assert row[-1] == following[0]
    # Every label stands in exactly one sample.
    assert np.concatenate([row[1:] for row in rows]).tolist() == list(range(1, 49 * LENGTH + 1))


def test_an_epoch_holds_every_sample_once(two: BlendedDataset) -> None:
    drawn: dict[tuple[int, int], list[int]] = {}
    for number in range(400):
        sample = two.train_id(number)
        drawn.setdefault((sample.corpus, sample.epoch), []).append(sample.sample)
    whole = {key: samples for key, samples in drawn.items() if len(samples) == two.train_counts[key[0]]}
    assert sum(corpus == 0 for corpus, _ in whole) >= 5
    assert sum(corpus == 1 for corpus, _ in whole) >= 3
    for (corpus, _), samples in whole.items():
        assert sorted(samples) == list(range(two.train_counts[corpus]))
    orders = {tuple(samples) for samples in whole.values()}
    assert len(orders) == len(whole), "epochs and corpora have orders of their own"


def test_epochs_follow_one_another(two: BlendedDataset) -> None:
    epochs: dict[int, list[int]] = {0: [], 1: []}
    for number in range(400):
        sample = two.train_id(number)
        epochs[sample.corpus].append(sample.epoch)
    for corpus, sequence in epochs.items():
        assert sequence == [position // two.train_counts[corpus] for position in range(len(sequence))]


def test_each_epoch_of_a_corpus_verifies_it_anew(two: BlendedDataset) -> None:
    verified: list[tuple[int, int]] = []
    for number in range(300):
        two.tokens(two.train_id(number))
        verified.append((two.corpora[0].times_verified, two.corpora[1].times_verified))
        # Read ahead, or held out: a sample of an epoch before starts nothing.
        two.tokens(two.eval_ids[0])
    assert verified[-1] == (300 * 3 // 4 // 43, 300 // 4 // 26)
    assert verified == sorted(verified)


def test_held_out_tokens_are_never_trained_on(two: BlendedDataset) -> None:
    trained = {(sample.corpus, sample.sample) for sample in map(two.train_id, range(1000))}
    held_out = {(sample.corpus, sample.sample) for sample in two.eval_ids}
    assert not trained & held_out
    predicted = {(corpus, token) for corpus, number in trained for token in labels(two, corpus, number)}
    evaluated = {(corpus, token) for corpus, number in held_out for token in labels(two, corpus, number)}
    assert not predicted & evaluated


def labels(dataset: BlendedDataset, corpus: int, number: int) -> list[int]:
    return dataset.tokens(SampleId(corpus=corpus, sample=number, epoch=0))[1:].tolist()


def test_cursor_counts_what_was_drawn(two: BlendedDataset) -> None:
    drawn = Counter(two.prefixes[two.train_id(number).corpus] for number in range(333))
    assert two.consumed(333) == dict(drawn)
    assert two.consumed(0) == {"a": 0, "b": 0}


def test_shares_follow_the_weights(two: BlendedDataset) -> None:
    assert two.consumed(4 * CYCLE) == {"a": 3 * CYCLE, "b": CYCLE}
    assert two.consumed(4000)["a"] == pytest.approx(3000, abs=6)


def test_a_sample_is_found_from_its_number_alone(two: BlendedDataset) -> None:
    forward = [two.train_id(number) for number in range(200)]
    backward = [two.train_id(number) for number in reversed(range(200))]
    assert forward == backward[::-1]


def test_shares_without_weights_are_those_of_the_tokens(memory_corpus: MakeCorpus) -> None:
    corpora = {"a": memory_corpus("a", 3000), "b": memory_corpus("b", 1000)}
    dataset = BlendedDataset(corpora, None, seq_length=LENGTH, seed=5, eval_samples=12)
    assert dataset.consumed(4 * CYCLE) == {"a": 3 * CYCLE, "b": CYCLE}
    assert Counter(sample.corpus for sample in dataset.eval_ids) == {0: 9, 1: 3}


def test_every_corpus_is_evaluated_if_any_is(memory_corpus: MakeCorpus) -> None:
    corpora = {name: memory_corpus(name, 1000) for name in "abc"}
    for asked, held in ((0, 0), (1, 3), (3, 3), (10, 10)):
        dataset = BlendedDataset(corpora, [1.0, 1.0, 1e-6], seq_length=LENGTH, seed=5, eval_samples=asked)
        assert len(dataset.eval_ids) == held
        assert len({sample.corpus for sample in dataset.eval_ids}) == (3 if held else 0)


def test_order_belongs_to_seed_and_content(memory_corpus: MakeCorpus) -> None:
    def order(seed: int, content: str, prefix: str) -> list[int]:
        corpora = {prefix: memory_corpus(content, 1000)}
        dataset = BlendedDataset(corpora, None, seq_length=LENGTH, seed=seed, eval_samples=4)
        return [dataset.train_id(number).sample for number in range(100)]

    assert order(1, "x", "here") == order(1, "x", "moved/there")
    assert order(1, "x", "here") != order(2, "x", "here")
    assert order(1, "x", "here") != order(1, "y", "here")


@pytest.mark.parametrize(
    ("num_tokens", "eval_samples", "holds"), [(8, 0, 0), (0, 0, 0), (1, 0, 0), (33, 4, 4), (33, 5, 4)]
)
def test_corpus_too_small_is_named(memory_corpus: MakeCorpus, num_tokens: int, eval_samples: int, holds: int) -> None:
    corpora = {"small/one": memory_corpus("a", num_tokens)}
    with pytest.raises(DataError) as caught:
        BlendedDataset(corpora, None, seq_length=LENGTH, seed=0, eval_samples=eval_samples)
    message = str(caught.value)
    assert message.startswith(f"small/one: holds {holds} samples of seq_length 8, but {eval_samples} are held out")
    assert "data.eval_samples" in message
    assert "training.seq_length" in message


def test_smallest_corpus_that_suffices(memory_corpus: MakeCorpus) -> None:
    dataset = BlendedDataset({"a": memory_corpus("a", 33)}, None, seq_length=LENGTH, seed=0, eval_samples=3)
    assert {dataset.train_id(number).sample for number in range(5)} == {0}
    assert dataset.train_id(4).epoch == 4


def test_token_outside_of_the_vocabulary_is_named(memory_corpus: MakeCorpus) -> None:
    """Under tensor parallelism it would be trained through in silence."""
    corpora = {"fits": memory_corpus("a", 50), "long": memory_corpus("b", 100)}
    dataset = BlendedDataset(corpora, [1.0, 1.0], seq_length=LENGTH, seed=0, eval_samples=0, vocab_size=60)
    assert dataset.tokens(SampleId(corpus=1, sample=6, epoch=0)).tolist() == list(range(48, 57))
    with pytest.raises(DataError, match=r"long: token 60 has id 60, but model\.vocab_size=60"):
        dataset.tokens(SampleId(corpus=1, sample=7, epoch=0))
    unchecked = BlendedDataset(corpora, [1.0, 1.0], seq_length=LENGTH, seed=0, eval_samples=0)
    assert unchecked.tokens(SampleId(corpus=1, sample=7, epoch=0))[-1] == 64


def test_corpora_that_end_documents_differently_are_refused(memory_corpus: MakeCorpus) -> None:
    corpora = {"one": memory_corpus("a", 100, 7), "two": memory_corpus("b", 100, 8)}
    with pytest.raises(DataError, match=r"one: 7, two: 8"):
        BlendedDataset(corpora, None, seq_length=LENGTH, seed=0, eval_samples=0)


def test_sample_ids_print_short() -> None:
    assert str(SampleId(corpus=1, sample=20, epoch=3)) == "1:20:3"


def test_opens_files_by_list_and_by_weight(byte_corpus: Path) -> None:
    by_list = open_dataset([str(byte_corpus)], seq_length=64, seed=1, eval_samples=4, vocab_size=257)
    by_weight = open_dataset({str(byte_corpus): 2.5}, seq_length=64, seed=1, eval_samples=4, vocab_size=257)
    assert list(by_list.sources(5)) == [str(byte_corpus)]
    assert by_list.sources(5) == by_weight.sources(5)
    first = by_list.train_id(0)
    assert first == by_weight.train_id(0)
    stored = np.fromfile(f"{byte_corpus}.bin", dtype="<i4")
    assert by_list.tokens(first).tolist() == stored[first.sample * 64 : first.sample * 64 + 65].tolist()


def test_missing_corpus_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        open_dataset([str(tmp_path / "nowhere")], seq_length=64, seed=1, eval_samples=4, vocab_size=257)


# Corpora that are only evaluated on


@pytest.mark.parametrize("most", [0, 1, 7, 77, 100])
def test_held_out_samples_are_spread_over_all_corpora(memory_corpus: MakeCorpus, most: int) -> None:
    """400 and 230 tokens: 49 and 28 samples."""
    corpora = {"a": memory_corpus("a", 400), "b": memory_corpus("b", 230)}
    dataset = HeldOutDataset(corpora, seq_length=LENGTH, eval_samples=most)
    ids = [(sample.corpus, sample.sample) for sample in dataset.eval_ids]
    everything = [*((0, number) for number in range(49)), *((1, number) for number in range(28))]
    assert len(ids) == (min(most, 77) or 77)
    assert ids == sorted(set(ids))
    assert set(ids) <= set(everything)
    places = [everything.index(one) for one in ids]
    assert all(77 // len(ids) <= step <= 77 // len(ids) + 1 for step in np.diff(places)), "evenly"


def test_a_held_out_corpus_without_a_sample_is_refused(memory_corpus: MakeCorpus) -> None:
    with pytest.raises(DataError, match="a: holds 0 samples of seq_length 8"):
        HeldOutDataset({"a": memory_corpus("a", LENGTH)}, seq_length=LENGTH, eval_samples=0)


# What a run takes of each corpus


def test_a_plan_counts_what_the_blend_gives(two: BlendedDataset) -> None:
    plans = corpus_plans(two, 400)
    given = Counter(two.train_id(number).corpus for number in range(400))
    assert [plan.tokens for plan in plans] == [given[0] * LENGTH, given[1] * LENGTH] == [301 * LENGTH, 99 * LENGTH]
    assert [plan.epochs for plan in plans] == pytest.approx([301 / 43, 99 / 26])
    assert plan_lines(plans) == ["a: 2,408 tokens, 75.0%, 7.00 epochs", "b: 792 tokens, 25.0%, 3.81 epochs"]
    (warning,) = plan_warnings(plans)
    assert warning.startswith("data.blend: more than 4 epochs of a (7.0); repeated text teaches less")
    assert plan_warnings(corpus_plans(two, 200)) == [], "four epochs are not too many"


def test_of_many_corpora_the_largest_are_listed(memory_corpus: MakeCorpus) -> None:
    corpora = {f"c{number}": memory_corpus(f"c{number}", 100 + 10 * number) for number in range(50)}
    plans = corpus_plans(BlendedDataset(corpora, None, seq_length=LENGTH, seed=0, eval_samples=0), 2000)
    lines = plan_lines(plans)
    assert len(lines) == 21
    assert lines[0].startswith("c49: ")
    assert lines[-1] == "and 30 corpora of fewer tokens"
