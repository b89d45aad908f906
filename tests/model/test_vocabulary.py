"""Vocabularies that are padded by the layout or shared by two stages train as in one process."""

from __future__ import annotations

import math
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from qwen_megatron.model.loss import mask_padded_vocabulary, summed_loss
from tests.support.ranks import RankPool
from tests.support.trainables import leave_gradient, random_batches, take_step, tiny_trainable, weights_of

VOCAB = 161  # Odd: two tensor-parallel ranks hold 162 rows.
TP2 = "parallel.tensor_model_parallel_size=2"
PP2 = "parallel.pipeline_model_parallel_size=2"
TIED = "model.tie_word_embeddings=true"


@pytest.mark.parametrize(
    ("vocab_size", "rank", "rows", "masked"),
    [(161, 0, 81, []), (161, 1, 81, [80]), (162, 1, 81, []), (5, 2, 2, [1]), (5, 3, 2, [0, 1]), (6, 0, 6, [])],
)
def test_rows_beyond_the_vocabulary_are_masked(vocab_size: int, rank: int, rows: int, masked: list[int]) -> None:
    logits = torch.zeros(3, 2, rows)
    mask_padded_vocabulary(logits, vocab_size, SimpleNamespace(rank=lambda: rank))  # type: ignore[arg-type]
    for row in range(rows):
        expected = -math.inf if row in masked else 0.0
        assert (logits[..., row] == expected).all()


def test_summed_loss_counts_what_the_mask_counts() -> None:
    losses = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    total, count = summed_loss(losses, torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]))
    assert (total.item(), count.item()) == (53.0, 4)
    assert (total.dtype, count.dtype) == (torch.float32, torch.int32)


def gradients_job(overrides: list[str]) -> tuple[float, dict[str, np.ndarray]]:
    """Loss of one global batch, and this rank's rows of the gradients of the vocabulary matrices."""
    with tiny_trainable(*overrides) as trainable:
        for chunk in trainable.model_chunks:
            chunk.zero_grad_buffer()
        batches = random_batches(trainable, VOCAB)
        loss = leave_gradient(trainable, batches)
        rows = {
            name: param.main_grad.numpy().copy()
            for name, param in weights_of(trainable).items()
            if name in ("embedding.word_embeddings.weight", "output_layer.weight")
        }
        return loss, rows


def training_job(overrides: list[str], steps: int) -> tuple[list[tuple[float, float]], dict[str, np.ndarray]]:
    """Loss and gradient norm of each step, and this rank's vocabulary matrices at the end."""
    with tiny_trainable(*overrides) as trainable:
        batches = random_batches(trainable, VOCAB)
        measured = []
        for step in range(1, steps + 1):
            # At 1e-2 rounding grows tenfold a step, in one process too: Adam's first steps follow the gradient's sign.
            result = take_step(trainable, batches, step=step)
            measured.append((result.loss, result.grad_norm))
        rows = {
            name: param.detach().numpy().copy()
            for name, param in weights_of(trainable).items()
            if name in ("embedding.word_embeddings.weight", "output_layer.weight")
        }
        return measured, rows


@pytest.fixture(scope="module")
def alone(ranks: RankPool) -> tuple[float, dict[str, np.ndarray]]:
    return ranks.run(1, gradients_job, overrides=[])[0]


def test_padding_changes_neither_loss_nor_gradients(
    ranks: RankPool, alone: tuple[float, dict[str, np.ndarray]]
) -> None:
    loss, gradients = alone
    assert loss == pytest.approx(math.log(VOCAB), rel=0.02)
    results = ranks.run(2, gradients_job, overrides=[TP2])
    for padded_loss, _ in results:
        assert padded_loss == pytest.approx(loss, rel=1e-6)
    for name, expected in gradients.items():
        padded = np.concatenate([rows[name] for _, rows in results])
        assert (expected.shape[0], padded.shape[0]) == (VOCAB, VOCAB + 1)
        assert not padded[VOCAB].any(), "the padding row got a gradient"
        np.testing.assert_allclose(padded[:VOCAB], expected, rtol=0, atol=1e-6 * np.abs(expected).max())
        assert expected[VOCAB - 1].any(), "the last real row takes part"


def test_padded_vocabulary_trains_as_one_process(ranks: RankPool) -> None:
    ((expected, _),) = ranks.run(1, training_job, overrides=[], steps=3)
    results = ranks.run(2, training_job, overrides=[TP2], steps=3)
    for measured, _ in results:
        np.testing.assert_allclose(measured, expected, rtol=1e-6)


def test_tied_embeddings_train_as_one_process(ranks: RankPool) -> None:
    ((expected, whole),) = ranks.run(1, training_job, overrides=[TIED], steps=3)
    assert list(whole) == ["embedding.word_embeddings.weight"]
    results = ranks.run(2, training_job, overrides=[TIED, PP2], steps=3)
    for measured, _ in results:
        np.testing.assert_allclose(measured, expected, rtol=1e-6)
    (first,), (last,) = (rows.values() for _, rows in results)
    assert np.array_equal(first, last), "the two copies of the tied matrix have parted"
    np.testing.assert_allclose(first, whole["embedding.word_embeddings.weight"], rtol=0, atol=1e-6)


def test_tied_and_padded_embeddings_train_as_one_process(ranks: RankPool) -> None:
    ((expected, _),) = ranks.run(1, training_job, overrides=[TIED], steps=2)
    results = ranks.run(4, training_job, overrides=[TIED, TP2, PP2], steps=2)
    for measured, _ in results:
        np.testing.assert_allclose(measured, expected, rtol=1e-6)


def test_untied_matrices_are_two(alone: tuple[float, dict[str, np.ndarray]]) -> None:
    _, gradients = alone
    assert len(gradients) == 2
    first, second = islice(gradients.values(), 2)
    assert not np.array_equal(first, second)
