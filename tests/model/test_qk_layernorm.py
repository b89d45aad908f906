"""Norms of queries and keys: whole on every tensor-parallel rank, though each sees only its own heads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from qwen_megatron.train.objective import NextTokenLoss
from tests.support.ranks import RankPool
from tests.support.trainables import (
    TinyTrainable,
    groups_for,
    leave_gradient,
    random_batches,
    take_step,
    tiny_built,
    tiny_config,
    weights_of,
)

QWEN3 = (
    "model.qk_layernorm=true",
    "model.add_qkv_bias=false",
    "model.num_query_groups=2",
    "model.kv_channels=24",
    "training.global_batch_size=4",
)
TP2, SP, PP2 = (
    "parallel.tensor_model_parallel_size=2",
    "parallel.sequence_parallel=true",
    "parallel.pipeline_model_parallel_size=2",
)
NORMS = ("q_layernorm.weight", "k_layernorm.weight")

# Loss and gradient norm; gradients of the norms, and the weights after a step, by the layer's global number.
Trained = tuple[float, float, dict[str, np.ndarray], dict[str, np.ndarray]]


def train_once(overrides: list[str]) -> Trained:
    """One step from norms that are not one, so that their weights have a say."""
    from qwen_megatron.train.optimizer import gradient_norm

    config = tiny_config(*QWEN3, *overrides)
    with groups_for(config) as groups:
        trainable: TinyTrainable = tiny_built(config, groups)
        first_layer = groups.pp.rank() * config.model.num_layers // groups.pp.size()
        norms: dict[str, torch.nn.Parameter] = {}
        for name, param in weights_of(trainable).items():
            if name.endswith(NORMS):
                _, _, number, _, norm, _ = name.removeprefix("module.").split(".")[-6:]
                norms[f"{first_layer + int(number)}.{norm}"] = param
        with torch.no_grad():
            for name, param in norms.items():
                generator = torch.Generator().manual_seed(sum(name.encode()))
                param.copy_(1 + 0.3 * torch.randn(param.shape, generator=generator))
        trainable.trained.reload_model_params()
        for chunk in trainable.model_chunks:
            chunk.zero_grad_buffer()
        trainable.trained.zero_grad()
        batches = random_batches(trainable, 161)
        loss = leave_gradient(trainable, batches, objective=NextTokenLoss())
        trainable.trained.prepare_grads()
        norm = gradient_norm(trainable.trained)
        gradients = {name: param.main_grad.numpy().copy() for name, param in norms.items()}
        take_step(trainable, random_batches(trainable, 161))
        return loss, norm, gradients, {name: param.detach().numpy().copy() for name, param in norms.items()}


@pytest.fixture(scope="module")
def alone(ranks: RankPool) -> Trained:
    (trained,) = ranks.run(1, train_once, overrides=[])
    return trained


@pytest.mark.parametrize("layout", [(2, TP2), (2, TP2, SP), (4, TP2, SP, PP2)], ids=["tp2", "tp2-sp", "tp2-sp-pp2"])
def test_every_rank_has_the_gradient_of_all_heads(ranks: RankPool, layout: tuple[Any, ...], alone: Trained) -> None:
    world_size, *overrides = layout
    expected_loss, expected_norm, expected_gradients, expected_weights = alone
    seen = set()
    for loss, norm, gradients, weights in ranks.run(world_size, train_once, overrides=overrides):
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        assert norm == pytest.approx(expected_norm, rel=1e-5)
        seen |= gradients.keys()
        for name, gradient in gradients.items():
            largest = np.abs(expected_gradients[name]).max()
            np.testing.assert_allclose(gradient, expected_gradients[name], rtol=0, atol=1e-5 * largest, err_msg=name)
            np.testing.assert_allclose(weights[name], expected_weights[name], rtol=0, atol=1e-5, err_msg=name)
    assert seen == expected_gradients.keys()
    # Two norms in each of two layers.
    assert len(seen) == 2 * 2
