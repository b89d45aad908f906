"""Gradient norm, clipping, decay and rate of the distributed optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from qwen_megatron.platforms.norms import sum_of_squares
from qwen_megatron.train.optimizer import gradient_norm, update
from tests.support.ranks import RankPool
from tests.support.trainables import TinyTrainable, leave_gradient, random_batches, tiny_trainable, weights_of

VOCAB = 161


@pytest.fixture
def trainable() -> Iterator[TinyTrainable]:
    with tiny_trainable() as trainable:
        yield trainable


def backward(trainable: TinyTrainable) -> float:
    """Fills the optimizer's gradients from one global batch; returns their norm."""
    for chunk in trainable.model_chunks:
        chunk.zero_grad_buffer()
    trainable.optimizer.zero_grad()
    leave_gradient(trainable, random_batches(trainable, VOCAB))
    trainable.optimizer.prepare_grads()
    return gradient_norm(trainable.optimizer)


def gradients_of(trainable: TinyTrainable) -> list[torch.Tensor]:
    return [param.grad.clone() for param in trainable.optimizer.get_parameters()]


def test_squares_of_a_large_tensor_are_exact() -> None:
    """torch's own fp32 norm of ten million elements is off by 3e-4 on a CPU: clipping would depend on the layout."""
    gradient = torch.randn(10_000_019, generator=torch.Generator().manual_seed(0)) * 1e-3
    exact = np.dot(gradient.numpy().astype(np.float64), gradient.numpy().astype(np.float64))
    assert sum_of_squares([gradient]).item() == pytest.approx(exact, rel=1e-12)
    pieces = sum_of_squares(gradient.split(3_000_001))
    assert pieces.item() == pytest.approx(exact, rel=1e-12)
    assert pieces.dtype == torch.float64


def test_squares_beyond_fp32_and_of_nothing() -> None:
    assert sum_of_squares([torch.full((4,), 1e30)]).item() == pytest.approx(4e60, rel=1e-6)
    assert sum_of_squares([torch.full((4,), 1e-30)]).item() == pytest.approx(4e-60, rel=1e-6)
    assert sum_of_squares([]).item() == 0.0
    assert sum_of_squares([torch.zeros(0), torch.ones(3, 2)]).item() == 6.0
    assert sum_of_squares([torch.tensor([3.0], dtype=torch.bfloat16)]).item() == 9.0
    assert math.isnan(sum_of_squares([torch.tensor([1.0, math.nan])]).item())


def test_gradient_norm_counts_every_weight_once(trainable: TinyTrainable) -> None:
    norm = backward(trainable)
    squares = sum(param.main_grad.double().square().sum().item() for param in weights_of(trainable).values())
    assert norm == pytest.approx(math.sqrt(squares), rel=1e-12)
    assert norm > 0.1


@pytest.mark.parametrize("clip", [0.5, 1e-3])
def test_clipping_scales_the_gradient_to_the_limit(trainable: TinyTrainable, clip: float) -> None:
    norm = backward(trainable)
    assert norm > clip
    before = gradients_of(trainable)
    update(trainable.optimizer, 0.0, clip, norm)
    for gradient, unclipped in zip(gradients_of(trainable), before, strict=True):
        torch.testing.assert_close(gradient, unclipped * (clip / norm), rtol=1e-5, atol=0)
    assert gradient_norm(trainable.optimizer) == pytest.approx(clip, rel=1e-5)


@pytest.mark.parametrize("clip", [0.0, 1e6])
def test_no_clipping_below_the_limit_or_without_one(trainable: TinyTrainable, clip: float) -> None:
    norm = backward(trainable)
    before = gradients_of(trainable)
    update(trainable.optimizer, 0.0, clip, norm)
    for gradient, untouched in zip(gradients_of(trainable), before, strict=True):
        assert torch.equal(gradient, untouched)


def test_update_uses_the_rate_it_is_given(trainable: TinyTrainable) -> None:
    """The first step of Adam moves a weight by the rate, in the direction of its gradient's sign."""
    norm = backward(trainable)
    name = "decoder.layers.0.self_attention.linear_qkv.bias"
    weight = weights_of(trainable)[name]
    before, gradient = weight.detach().clone(), weight.main_grad.clone()
    update(trainable.optimizer, 0.25, 0.0, norm)
    large = gradient.abs() > 1e-5
    assert large.sum() > 50
    torch.testing.assert_close((weight - before)[large], -0.25 * gradient[large].sign(), rtol=1e-2, atol=0)
    assert {group["lr"] for group in trainable.optimizer.param_groups} == {0.25}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_norms_and_biases_do_not_decay(precision: str) -> None:
    assert_decay(precision)


def test_norms_and_biases_do_not_decay_when_split(ranks: RankPool) -> None:
    ranks.run(2, assert_decay, precision="fp32")


def assert_decay(precision: str) -> None:
    """Without a gradient a step is nothing but decay."""
    overrides = (f"training.precision={precision}", "optimizer.weight_decay=0.5", "model.qk_layernorm=true")
    with tiny_trainable(*overrides) as trainable:
        weights = weights_of(trainable)
        with torch.no_grad():
            for name, weight in weights.items():
                if name.endswith(".bias"):
                    weight.fill_(1.0)
        trainable.optimizer.reload_model_params()
        before = {name: weight.detach().clone() for name, weight in weights.items()}
        for chunk in trainable.model_chunks:
            chunk.zero_grad_buffer()
        trainable.optimizer.zero_grad()
        trainable.optimizer.prepare_grads()
        update(trainable.optimizer, 0.5, 0.0, 0.0)
        for name, weight in weights.items():
            if weight.dim() == 1:
                assert torch.equal(weight, before[name]), f"{name} has decayed"
            else:
                torch.testing.assert_close(
                    weight.detach().float(),
                    before[name].float() * 0.75,
                    rtol=1e-6 if precision == "fp32" else 1e-2,
                    atol=0,
                )
