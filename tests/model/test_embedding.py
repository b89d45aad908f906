"""The sparse gradient of the embedding is the dense one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from megatron.core.tensor_parallel.layers import VocabParallelEmbedding

from tests.support.ranks import RankPool
from tests.support.trainables import random_batches, tiny_trainable

VOCAB = 161
TP2 = "parallel.tensor_model_parallel_size=2"
SP = "parallel.sequence_parallel=true"


def lookup_job(overrides: list[str], dense: bool) -> tuple[np.ndarray, np.ndarray]:
    """What the engine's embedding gives and the gradient its rows get, by our lookup or Megatron-Core's dense one."""
    with tiny_trainable(*overrides) as trainable:
        (chunk,) = trainable.model_chunks
        chunk.zero_grad_buffer()
        layer = trainable.models[0].embedding.word_embeddings
        tokens = next(random_batches(trainable, VOCAB)).tokens_bs % 50 + 60
        output = VocabParallelEmbedding.forward(layer, tokens) if dense else layer(tokens)
        # A gradient that tells positions and channels apart; tokens repeat, and some rows belong to the other rank.
        (output * torch.arange(output.numel()).view_as(output).sin()).sum().backward()
        return output.detach().numpy(), layer.weight.main_grad.numpy().copy()


@pytest.mark.parametrize("overrides", [[], [TP2], [TP2, SP]], ids=["alone", "tp2", "tp2-sp"])
def test_lookup_and_gradient_are_megatrons(ranks: RankPool, overrides: list[str]) -> None:
    world_size = 2 if overrides else 1
    sparse = ranks.run(world_size, lookup_job, overrides=overrides, dense=False)
    dense = ranks.run(world_size, lookup_job, overrides=overrides, dense=True)
    for (output, gradient), (expected_output, expected_gradient) in zip(sparse, dense, strict=True):
        assert np.array_equal(output, expected_output)
        assert np.abs(expected_gradient).max() > 1
        np.testing.assert_allclose(gradient, expected_gradient, rtol=0, atol=1e-5)
        assert (gradient.any(axis=1) == expected_gradient.any(axis=1)).all()
