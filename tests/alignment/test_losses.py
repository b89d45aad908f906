"""PPO's two objectives: their gradients, their clips, and pretraining text in the same optimizer step."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from qwen_megatron.alignment.experience import pieces, weighed, with_extras
from qwen_megatron.alignment.pairwise_loss import PairwiseLoss
from qwen_megatron.alignment.policy_loss import PolicyLoss
from qwen_megatron.alignment.value_loss import ValueLoss
from qwen_megatron.data.batch import Batch
from qwen_megatron.data.preference.batch import CORPUS, END_INDEX
from qwen_megatron.data.protocol import BatchShape
from qwen_megatron.train.objective import NextTokenLoss, Objective
from tests.support.ranks import RankPool
from tests.support.trainables import groups_for, leave_gradient, tiny_built, tiny_config, weights_of

ROWS, LENGTH, VOCAB = 8, 16, 161


def rows_with(seed: int = 0, **extras: torch.Tensor) -> Batch:
    """Rows of experience with actions in the middle."""
    generator = np.random.default_rng(seed)
    tokens_bs = torch.from_numpy(generator.integers(0, VOCAB, size=(ROWS, LENGTH)))
    mask_bs = torch.zeros(ROWS, LENGTH)
    for row in range(ROWS):
        mask_bs[row, 3 : 5 + row] = 1.0
    labels_bs = torch.zeros_like(tokens_bs)
    labels_bs[:, :-1] = tokens_bs[:, 1:]
    batch = Batch(
        tokens_bs=tokens_bs,
        labels_bs=labels_bs,
        loss_mask_bs=mask_bs,
        position_ids_bs=torch.arange(LENGTH).expand_as(tokens_bs),
        document_ids_bs=None,
        samples=tuple(range(ROWS)),
    )
    return with_extras(batch, extras)


def advantages(seed: int = 1) -> torch.Tensor:
    drawn = torch.randn(ROWS, LENGTH, generator=torch.Generator().manual_seed(seed))
    return drawn * rows_with().loss_mask_bs


def test_at_ratio_one_the_gradient_is_that_of_the_log_probability_times_the_advantage() -> None:
    log_probabilities_bs = (-torch.rand(ROWS, LENGTH) * rows_with().loss_mask_bs).requires_grad_()
    rows = rows_with(log_probabilities_bs=log_probabilities_bs.detach().clone(), advantages_bs=advantages())
    sums = PolicyLoss(clip_range=0.2).measure(log_probabilities_bs, rows)
    sums.total.backward()
    torch.testing.assert_close(log_probabilities_bs.grad, -advantages())
    assert sums.metrics["clip_share"] == 0
    assert sums.metrics["ratio"] == sums.count == rows.loss_mask_bs.sum()


def test_the_surrogate_is_flat_beyond_the_clip_on_the_good_side_only() -> None:
    mask_bs = torch.tensor([[1.0, 1.0, 1.0, 1.0]])
    rows = dataclasses.replace(
        rows_with(),
        loss_mask_bs=mask_bs,
        extras={"log_probabilities_bs": torch.zeros(1, 4), "advantages_bs": torch.tensor([[2.0, 2.0, -2.0, -2.0]])},
    )
    output_bs = torch.tensor([[0.5, -0.5, 0.5, -0.5]], requires_grad=True)
    sums = PolicyLoss(clip_range=0.2).measure(output_bs, rows)
    sums.total.backward()
    # Already more likely and good, already less likely and bad: nothing is gained by going on.
    assert output_bs.grad is not None
    expected = torch.tensor([[0.0, -2 * np.exp(-0.5), 2 * np.exp(0.5), 0.0]], dtype=torch.float32)
    torch.testing.assert_close(output_bs.grad, expected)
    assert sums.metrics["clip_share"] == 4
    assert float(sums.total) == pytest.approx(-(1.2 * 2 + np.exp(-0.5) * 2 - np.exp(0.5) * 2 - 0.8 * 2), rel=1e-6)


def test_values_are_clipped_around_what_they_were() -> None:
    mask_bs = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    rows = dataclasses.replace(
        rows_with(),
        loss_mask_bs=mask_bs,
        extras={"values_bs": torch.zeros(1, 4), "returns_bs": torch.tensor([[1.0, 1.0, -1.0, 9.0]])},
    )
    output_bs = torch.tensor([[0.1, 0.5, 0.5, 0.0]], requires_grad=True)
    sums = ValueLoss(clip_range=0.15).measure(output_bs, rows)
    sums.total.backward()
    assert float(sums.total) == pytest.approx(0.5 * (0.9**2 + 0.85**2 + 1.5**2), rel=1e-6)
    torch.testing.assert_close(output_bs.grad, torch.tensor([[-0.9, 0.0, 1.5, 0.0]]))
    assert (sums.count, sums.metrics["value_clip_share"]) == (3, 1)


def pair_rows() -> Batch:
    """Every two rows a pair, some of no corpus that is counted."""
    ends_b = torch.tensor([3, 5, 7, 9, 11, 13, 14, 15])
    return rows_with(**{END_INDEX: ends_b, CORPUS: torch.tensor([0, 0, 1, 1, 1, 1, 0, 0])})


def action_rows() -> Batch:
    """Rows of 2 to 9 actions with all that is learned from."""
    mask_bs = rows_with().loss_mask_bs
    old_bs, values_bs, returns_bs = mask_bs * torch.randn(3, ROWS, LENGTH, generator=torch.Generator().manual_seed(4))
    return rows_with(
        log_probabilities_bs=old_bs, advantages_bs=advantages(), values_bs=values_bs, returns_bs=returns_bs
    )


@pytest.mark.parametrize(
    ("objective", "rows"),
    [
        (NextTokenLoss(), action_rows()),
        (PolicyLoss(clip_range=0.2), action_rows()),
        (PolicyLoss(clip_range=0.2, pretraining_coefficient=2.0), weighed(rows_with(), 0.3)),
        (ValueLoss(clip_range=0.15), action_rows()),
        (PairwiseLoss(num_corpora=2), pair_rows()),
    ],
    ids=["next token", "policy", "pretraining text", "value", "pairwise"],
)
@pytest.mark.parametrize("size", [2, 4])
def test_what_pieces_add_up_to_is_what_the_whole_gives(objective: Objective, rows: Batch, size: int) -> None:
    """A mean for each micro-batch would weigh tokens by how the batch is cut."""
    generator = torch.Generator().manual_seed(6)
    output_bs = (torch.randn(ROWS, LENGTH, generator=generator) * rows.loss_mask_bs).requires_grad_()
    whole = objective.measure(output_bs, rows)
    parts = [objective.measure(*cut) for cut in zip(output_bs.split(size), pieces(rows, size), strict=True)]
    assert sum(int(part.count) for part in parts) == int(whole.count)
    for name in objective.metric_names:
        torch.testing.assert_close(sum(part.metrics[name] for part in parts), whole.metrics[name], msg=name)
    totals = whole.total, sum(part.total for part in parts)
    torch.testing.assert_close(*totals)
    torch.testing.assert_close(*(torch.autograd.grad(total, output_bs)[0] for total in totals))


def mixed_job(micro_batch_size: int, coefficient: float, overrides: list[str]) -> tuple[float, dict[str, Any]]:
    """Loss and gradient of a minibatch with pretraining text beside it, cut into micro-batches of a size."""
    from qwen_megatron.train.optimizer import gradient_norm

    config = tiny_config(*overrides, f"training.micro_batch_size={micro_batch_size}", f"training.seq_length={LENGTH}")
    with groups_for(config) as groups:
        trainable = tiny_built(config, groups)
        trainable = dataclasses.replace(
            trainable, shape=BatchShape(micro_batch_size=micro_batch_size, seq_length=LENGTH)
        )
        rows = rows_with(log_probabilities_bs=-5.0 * rows_with().loss_mask_bs, advantages_bs=advantages())
        text = dataclasses.replace(rows_with(seed=7), loss_mask_bs=torch.ones(ROWS, LENGTH))
        weight = coefficient * float(rows.loss_mask_bs.sum()) / text.loss_mask_bs.numel()
        share, rank = ROWS // groups.dp.size(), groups.dp.rank()
        batches = list(list(pieces(rows, share))[rank : rank + 1])
        batches = [*pieces(batches[0], micro_batch_size)]
        if coefficient:
            mine = list(pieces(text, share))[rank]
            batches += [weighed(batch, weight) for batch in pieces(mine, micro_batch_size)]
        for chunk in trainable.model_chunks:
            chunk.zero_grad_buffer()
        trainable.trained.zero_grad()
        objective = PolicyLoss(clip_range=0.2, pretraining_coefficient=coefficient)
        mean = leave_gradient(trainable, iter(batches), objective=objective, num_microbatches=len(batches))
        trainable.trained.prepare_grads()
        gradients = {name: param.main_grad.numpy().copy() for name, param in weights_of(trainable).items()}
        return mean, {"norm": gradient_norm(trainable.trained), **gradients}


def text_job() -> dict[str, Any]:
    """The gradient of the mean next-token loss of the same pretraining text alone."""
    config = tiny_config("training.micro_batch_size=8", f"training.seq_length={LENGTH}")
    with groups_for(config) as groups:
        trainable = tiny_built(config, groups)
        text = dataclasses.replace(rows_with(seed=7), loss_mask_bs=torch.ones(ROWS, LENGTH))
        for chunk in trainable.model_chunks:
            chunk.zero_grad_buffer()
        leave_gradient(trainable, iter([text]), objective=NextTokenLoss(), num_microbatches=1)
        return {name: param.main_grad.numpy().copy() for name, param in weights_of(trainable).items()}


def test_pretraining_text_adds_its_mean_gradient_times_the_coefficient(ranks: RankPool) -> None:
    ((_, alone),) = ranks.run(1, mixed_job, micro_batch_size=8, coefficient=0.0, overrides=[])
    ((_, both),) = ranks.run(1, mixed_job, micro_batch_size=8, coefficient=2.5, overrides=[])
    (text,) = ranks.run(1, text_job)
    for name, gradient in text.items():
        expected = alone[name] + 2.5 * gradient
        np.testing.assert_allclose(both[name], expected, rtol=0, atol=1e-5 * np.abs(expected).max(), err_msg=name)


@pytest.mark.parametrize("layout", [(1, 4), (1, 1), (2, 2)], ids=str)
def test_neither_micro_batches_nor_replicas_weigh(ranks: RankPool, layout: tuple[int, int]) -> None:
    world_size, micro_batch_size = layout
    ((mean, whole),) = ranks.run(1, mixed_job, micro_batch_size=8, coefficient=2.5, overrides=[])
    cut = ranks.run(world_size, mixed_job, micro_batch_size=micro_batch_size, coefficient=2.5, overrides=[])
    for other_mean, other in cut:
        assert other_mean == pytest.approx(mean, rel=1e-5)
        assert other["norm"] == pytest.approx(whole["norm"], rel=1e-5)
