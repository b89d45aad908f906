"""What the last stage returns: a scalar head and log-probabilities, on every layout, with their gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from qwen_megatron.data.batch import Batch
from qwen_megatron.model.head_kinds import SCALAR
from qwen_megatron.model.heads import HeadRequest, Output
from qwen_megatron.platforms import vocabulary
from qwen_megatron.train.objective import Objective, Sums
from tests.support.ranks import RankPool
from tests.support.trainables import (
    TinyTrainable,
    groups_for,
    groups_of,
    leave_gradient,
    random_batches,
    tiny_built,
    tiny_config,
    weights_of,
)

VOCAB = 161
TP2, SP, PP2, CP2 = (
    "parallel.tensor_model_parallel_size=2",
    "parallel.sequence_parallel=true",
    "parallel.pipeline_model_parallel_size=2",
    "parallel.context_parallel_size=2",
)
TIED = "model.tie_word_embeddings=true"
LAYOUTS = [(1,), (2, TP2), (2, TP2, SP), (2, PP2), (4, TP2, SP, PP2), (2, CP2), (2,)]


def chosen(batch: Batch) -> torch.Tensor:
    """[b, s] bool: some tokens of each row, by their content, so that every layout chooses the same."""
    return batch.tokens_bs % 3 == 0


class Weighted(Objective):
    """Log-probabilities at chosen positions, each with a weight of its own: no masked sum of losses."""

    metric_names = ("squares",)

    def request(self, batch: Batch) -> HeadRequest:
        return HeadRequest(output=Output.LOG_PROBABILITIES, labels_bs=batch.labels_bs, positions_bs=chosen(batch))

    def measure(self, output: torch.Tensor, batch: Batch) -> Sums:
        weights_bs = (batch.tokens_bs % 7).float() - 3
        return Sums(
            total=(output.exp() * weights_bs).sum(),
            count=chosen(batch).sum().to(torch.int32),
            metrics={"squares": output.square().sum()},
        )


class WeightedLosses(Weighted):
    """The same of whole losses, through autograd alone."""

    def request(self, batch: Batch) -> HeadRequest:
        return HeadRequest(output=Output.TOKEN_LOSSES, labels_bs=batch.labels_bs)

    def measure(self, output: torch.Tensor, batch: Batch) -> Sums:
        return super().measure(torch.where(chosen(batch), -output, 0.0), batch)


class Regression(Objective):
    """Squared distance of a scalar head from a number made of the token."""

    def request(self, batch: Batch) -> HeadRequest:
        return HeadRequest(output=Output.SCALARS)

    def measure(self, output: torch.Tensor, batch: Batch) -> Sums:
        distance_bs = output - (batch.tokens_bs % 5).float()
        return Sums(total=distance_bs.square().sum(), count=torch.tensor(output.numel(), dtype=torch.int32))


class SquaredHidden(Regression):
    """The mean square of hidden states, made by every tensor-parallel rank for itself."""

    def request(self, batch: Batch) -> HeadRequest:
        return HeadRequest(output=Output.HIDDEN_STATES)

    def measure(self, output: torch.Tensor, batch: Batch) -> Sums:
        weights_s = (batch.position_ids_bs % 3).float()[..., None]
        return Sums(
            total=(output * weights_s).square().sum(), count=torch.tensor(batch.tokens_bs.numel(), dtype=torch.int32)
        )


def gradient_job(objective: Objective, head: str, overrides: list[str]) -> tuple[float, float, dict[str, Any]]:
    """Loss of a global batch, the norm of its gradient, and this rank's gradients."""
    from qwen_megatron.train.optimizer import gradient_norm

    config = tiny_config(*overrides)
    with groups_for(config) as groups:
        trainable: TinyTrainable = tiny_built(config, groups, head=head)
        for chunk in trainable.model_chunks:
            chunk.zero_grad_buffer()
        trainable.trained.zero_grad()
        mean = leave_gradient(trainable, random_batches(trainable, VOCAB), objective=objective)
        trainable.trained.prepare_grads()
        norm = gradient_norm(trainable.trained)
        return mean, norm, {name: param.main_grad.numpy().copy() for name, param in weights_of(trainable).items()}


@pytest.fixture(scope="module")
def alone(ranks: RankPool) -> Callable[[Objective, str], tuple[float, float]]:
    """Loss and norm of an objective on one process, measured once."""
    found: dict[type[Objective], tuple[float, float]] = {}

    def measure(objective: Objective, head: str) -> tuple[float, float]:
        if type(objective) not in found:
            ((mean, norm, _),) = ranks.run(1, gradient_job, objective=objective, head=head, overrides=[])
            found[type(objective)] = mean, norm
        return found[type(objective)]

    return measure


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: "-".join(str(x).split(".")[-1] for x in layout))
@pytest.mark.parametrize(
    ("objective", "head"),
    [(Weighted(), "language_model"), (Regression(), SCALAR), (SquaredHidden(), "language_model")],
    ids=["log-probabilities", "scalars", "hidden states"],
)
def test_every_layout_gives_the_same_gradient(
    ranks: RankPool,
    alone: Callable[[Objective, str], tuple[float, float]],
    objective: Objective,
    head: str,
    layout: tuple[Any, ...],
) -> None:
    world_size, *overrides = layout
    expected, expected_norm = alone(objective, head)
    for mean, norm, _ in ranks.run(world_size, gradient_job, objective=objective, head=head, overrides=overrides):
        assert mean == pytest.approx(expected, rel=1e-5)
        assert norm == pytest.approx(expected_norm, rel=1e-5)


@pytest.mark.parametrize("layout", [(1,), (1, TIED), (2, TP2, SP), (2, PP2, TIED)], ids=str)
def test_log_probabilities_have_the_gradient_of_whole_losses(ranks: RankPool, layout: tuple[Any, ...]) -> None:
    world_size, *overrides = layout
    ours = ranks.run(world_size, gradient_job, objective=Weighted(), head="language_model", overrides=overrides)
    whole = ranks.run(world_size, gradient_job, objective=WeightedLosses(), head="language_model", overrides=overrides)
    for (mean, norm, gradients), (expected_mean, expected_norm, expected) in zip(ours, whole, strict=True):
        assert mean == pytest.approx(expected_mean, rel=1e-5)
        assert norm == pytest.approx(expected_norm, rel=1e-5)
        for name, gradient in expected.items():
            largest = np.abs(gradient).max()
            np.testing.assert_allclose(gradients[name], gradient, rtol=0, atol=3e-6 * largest, err_msg=name)


def test_no_position_and_one_position(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "BLOCK_TOKENS", 3)
    with groups_of() as groups:
        trainable = tiny_built(tiny_config(), groups)
        model, batch = trainable.models[0].eval(), next(random_batches(trainable, VOCAB))
        nowhere = torch.zeros_like(batch.tokens_bs, dtype=torch.bool)
        one = nowhere.clone()
        one[1, 4] = True
        request = HeadRequest(output=Output.LOG_PROBABILITIES, labels_bs=batch.labels_bs, positions_bs=nowhere)
        assert not model(batch.tokens_bs, None, None, request).any()
        found = model(batch.tokens_bs, None, None, dataclasses.replace(request, positions_bs=one))
        logits = model(batch.tokens_bs, None).log_softmax(dim=-1)
        assert found[1, 4].item() == pytest.approx(logits[1, 4, batch.labels_bs[1, 4]].item(), rel=1e-5)
        assert found.count_nonzero() == 1


def test_a_head_is_not_asked_for_what_it_has_not() -> None:
    with groups_of() as groups:
        language, scalar = tiny_built(tiny_config(), groups), tiny_built(tiny_config(), groups, head=SCALAR)
        tokens_bs = torch.zeros(2, 8, dtype=torch.int64)
        with pytest.raises(ValueError, match="language_model head has no scalars"):
            language.models[0](tokens_bs, None, None, HeadRequest(output=Output.SCALARS))
        with pytest.raises(ValueError, match="scalar head has no logits"):
            scalar.models[0](tokens_bs, None)
    with pytest.raises(ValueError, match="log-probabilities need positions_bs"):
        HeadRequest(output=Output.LOG_PROBABILITIES, labels_bs=tokens_bs)


def test_a_broken_promise_is_noticed() -> None:
    """Who asks for fused losses and then weighs them otherwise would train on another gradient."""

    class Promised(WeightedLosses):
        def request(self, batch: Batch) -> HeadRequest:
            return dataclasses.replace(super().request(batch), loss_mask_bs=batch.loss_mask_bs)

    with groups_of() as groups:
        trainable = tiny_built(tiny_config(), groups)
        with pytest.raises(RuntimeError, match="not loss_mask times one number"):
            leave_gradient(trainable, random_batches(trainable, VOCAB), objective=Promised())
