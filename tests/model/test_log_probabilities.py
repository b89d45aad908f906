"""Log-probabilities over a vocabulary that two ranks share, against a plain log-softmax in fp64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qwen_megatron.model.log_probabilities import head_entropies, head_log_probabilities
from qwen_megatron.model.loss import VocabularyShard
from tests.support.ranks import RankPool
from tests.support.trainables import groups_of

ROWS, LENGTH, HIDDEN, VOCAB = 2, 8, 16, 61


def inputs() -> tuple[torch.Tensor, ...]:
    """Hidden states, weight with a padding row, labels, places, and the gradient that comes back to each of them."""
    generator = torch.Generator().manual_seed(8)
    hidden_sbh = torch.randn(LENGTH, ROWS, HIDDEN, generator=generator)
    weight_vh = torch.randn(VOCAB + 1, HIDDEN, generator=generator)
    labels_bs = torch.randint(VOCAB, (ROWS, LENGTH), generator=generator)
    positions_bs = torch.rand(ROWS, LENGTH, generator=generator) < 0.7
    return hidden_sbh, weight_vh, labels_bs, positions_bs, torch.randn(ROWS, LENGTH, generator=generator)


def shared_job(sequence_parallel: bool) -> list[np.ndarray]:
    """This rank's values and entropies, and its gradients of hidden states and weight."""
    with groups_of(tensor_size=2) as groups:
        hidden_sbh, weight_vh, labels_bs, positions_bs, upstream_bs = inputs()
        rank = groups.tp.rank()
        hidden_sbh = hidden_sbh.chunk(2)[rank] if sequence_parallel else hidden_sbh
        leaves = hidden_sbh.clone().requires_grad_(), weight_vh.chunk(2)[rank].clone().requires_grad_()
        shard = VocabularyShard(vocab_size=VOCAB, rows=len(leaves[1]), tp_group=groups.tp)
        values_bs = head_log_probabilities(*leaves, labels_bs, positions_bs, shard, sequence_parallel=sequence_parallel)
        entropies_bs = head_entropies(*leaves, positions_bs, shard, sequence_parallel=sequence_parallel)
        (values_bs * upstream_bs).sum().backward()
        return [found.detach().numpy() for found in (values_bs, entropies_bs, leaves[0].grad, leaves[1].grad)]


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_two_ranks_give_the_values_and_gradients_of_one(ranks: RankPool, sequence_parallel: bool) -> None:
    """A sum over ranks that autograd takes for a copy, or sums once more on the way back, gives other gradients."""
    first, second = ranks.run(2, shared_job, sequence_parallel=sequence_parallel)
    hidden_sbh, weight_vh, labels_bs, positions_bs, upstream_bs = inputs()
    hidden_sbh, weight_vh = hidden_sbh.double().requires_grad_(), weight_vh.double().requires_grad_()
    dense = (hidden_sbh.transpose(0, 1) @ weight_vh[:VOCAB].T).log_softmax(dim=-1)
    values_bs = dense.gather(2, labels_bs[..., None])[..., 0] * positions_bs
    (values_bs * upstream_bs).sum().backward()
    entropies_bs = -(dense.exp() * dense).sum(dim=-1) * positions_bs
    hidden = np.concatenate([first[2], second[2]]) if sequence_parallel else first[2]
    found = [first[0], first[1], hidden, np.concatenate([first[3], second[3]])]
    for ours, expected in zip(found, (values_bs, entropies_bs, hidden_sbh.grad, weight_vh.grad), strict=True):
        wanted = expected.detach().numpy()
        np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())
    for number in (0, 1) if sequence_parallel else (0, 1, 2):
        np.testing.assert_array_equal(first[number], second[number])
