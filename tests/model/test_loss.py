"""The fused output layer and loss against plain cross entropy in fp64."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from qwen_megatron.model.heads import HeadRequest, Output
from qwen_megatron.model.loss import VocabularyShard, head_cross_entropy
from qwen_megatron.parallel.groups import Groups
from qwen_megatron.platforms import vocabulary
from tests.support.ranks import RankPool
from tests.support.trainables import groups_of, leave_gradient, random_batches, tiny_trainable, weights_of

SEQUENCE, BATCH, HIDDEN, VOCAB = 6, 2, 8, 161
TP2 = "parallel.tensor_model_parallel_size=2"
PP2 = "parallel.pipeline_model_parallel_size=2"
SP = "parallel.sequence_parallel=true"
TIED = "model.tie_word_embeddings=true"


def inputs(dtype: torch.dtype, mask: str = "some") -> tuple[torch.Tensor, ...]:
    """Hidden states, weight (one padding row, which must not matter), labels and mask."""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(SEQUENCE, BATCH, HIDDEN, generator=generator).to(dtype)
    weight = torch.randn(VOCAB + 1, HIDDEN, generator=generator).to(dtype)
    weight[VOCAB] = 100.0
    labels = torch.randint(VOCAB, (SEQUENCE, BATCH), generator=generator)
    labels[1, 0], labels[0, 1] = VOCAB - 1, 0
    loss_mask = {
        "all": torch.ones(SEQUENCE, BATCH),
        "some": (torch.rand(SEQUENCE, BATCH, generator=generator) > 0.3).float(),
        "weights": torch.rand(SEQUENCE, BATCH, generator=generator),
        "none": torch.zeros(SEQUENCE, BATCH),
    }[mask]
    return hidden, weight, labels, loss_mask


def oracle(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, loss_mask: torch.Tensor, scale: float = 1.0
) -> tuple[torch.Tensor, ...]:
    """Losses, gradient of the hidden states, gradient of the weight; in fp64 by autograd."""
    hidden, weight = hidden.double().requires_grad_(), weight.double().requires_grad_()
    logits = (hidden @ weight[:VOCAB].T).flatten(0, 1)
    losses = torch.nn.functional.cross_entropy(logits, labels.flatten(), reduction="none").view_as(labels)
    (scale * (losses * loss_mask).sum()).backward()
    return losses.detach() * (loss_mask != 0), hidden.grad, weight.grad


def shard_of(groups: Groups, rows: int = VOCAB + 1) -> VocabularyShard:
    return VocabularyShard(vocab_size=VOCAB, rows=rows, tp_group=groups.tp)


def assert_near(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    error = (actual.double() - expected).abs().max()
    assert error <= tolerance * expected.abs().max().clamp(min=1e-30), f"off by {error}"


# bf16: three roundings to 8 bits each, of logits, residuals and products.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("mask", ["all", "some", "weights"])
@pytest.mark.parametrize("block", [1, 5, 12, 512])
def test_loss_and_gradients_are_those_of_cross_entropy(
    groups: Groups, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, mask: str, block: int
) -> None:
    monkeypatch.setattr(vocabulary, "BLOCK_TOKENS", block)
    monkeypatch.setattr(vocabulary, "WEIGHT_ROWS", 50)
    monkeypatch.setattr(vocabulary, "SOFTMAX_ELEMENTS", 3 * VOCAB)
    hidden, weight, labels, loss_mask = inputs(dtype, mask)
    expected = oracle(hidden, weight, labels, loss_mask, scale=0.25)
    hidden.requires_grad_(), weight.requires_grad_()
    losses = head_cross_entropy(hidden, weight, labels, loss_mask, shard_of(groups))
    (0.25 * (losses * loss_mask).sum()).backward()
    for actual, wanted in zip((losses.detach(), hidden.grad, weight.grad), expected, strict=True):
        assert_near(actual, wanted, TOLERANCE[dtype])
    assert not weight.grad[VOCAB].any(), "the padding row got a gradient"
    with torch.no_grad():
        assert torch.equal(head_cross_entropy(hidden, weight, labels, loss_mask, shard_of(groups)), losses)


def test_nothing_counts_where_all_is_masked(groups: Groups) -> None:
    hidden, weight, labels, loss_mask = inputs(torch.float32, "none")
    labels[0, 0] = -100
    hidden.requires_grad_(), weight.requires_grad_()
    losses = head_cross_entropy(hidden, weight, labels, loss_mask, shard_of(groups))
    (losses * loss_mask).sum().backward()
    for nothing in (losses, hidden.grad, weight.grad):
        assert not nothing.any()


def test_what_does_not_count_is_not_computed(groups: Groups) -> None:
    """Of dialogues about half: their logits would cost as much as the others'."""
    hidden, weight, labels, loss_mask = inputs(torch.float32, "some")
    expected = oracle(hidden, weight, labels, loss_mask)
    hidden[loss_mask == 0] = torch.nan
    hidden.requires_grad_(), weight.requires_grad_()
    losses = head_cross_entropy(hidden, weight, labels, loss_mask, shard_of(groups))
    (losses * loss_mask).sum().backward()
    for actual, wanted in zip((losses.detach(), hidden.grad, weight.grad), expected, strict=True):
        assert_near(actual, wanted, TOLERANCE[torch.float32])


@pytest.mark.parametrize("label", [-1, VOCAB, VOCAB + 5])
def test_a_counted_label_outside_the_vocabulary_is_not_a_number(groups: Groups, label: int) -> None:
    hidden, weight, labels, loss_mask = inputs(torch.float32, "all")
    labels[2, 1] = label
    losses = head_cross_entropy(hidden, weight, labels, loss_mask, shard_of(groups))
    assert losses.isnan().nonzero().tolist() == [[2, 1]]


def test_confident_rows_keep_their_gradient(groups: Groups) -> None:
    """p - 1 is not lost in the rounding of p: the residual of a likely label is small and still right in bf16."""
    weight = torch.zeros(VOCAB + 1, HIDDEN, dtype=torch.bfloat16)
    weight[7] = 1.0
    hidden = torch.ones(1, 1, HIDDEN, dtype=torch.bfloat16).mul_(1.5).requires_grad_()
    labels, loss_mask = torch.tensor([[7]]), torch.ones(1, 1)
    expected = oracle(hidden.detach(), weight, labels, loss_mask)[1]
    head_cross_entropy(hidden, weight, labels, loss_mask, shard_of(groups)).sum().backward()
    assert 0 < expected.abs().max() < 2e-3
    assert_near(hidden.grad, expected, 1e-2)


def test_losses_weighed_otherwise_are_refused(groups: Groups) -> None:
    hidden, weight, labels, loss_mask = inputs(torch.float32, "some")
    losses = head_cross_entropy(hidden.requires_grad_(), weight, labels, loss_mask, shard_of(groups))
    with pytest.raises(RuntimeError, match="loss_implementation=unfused"):
        (losses * loss_mask * torch.rand(SEQUENCE, BATCH)).sum().backward()
    losses = head_cross_entropy(hidden, weight, labels, loss_mask, shard_of(groups))
    with pytest.raises(RuntimeError, match="not loss_mask times one number"):
        losses.square().sum().backward()


def test_a_scaled_loss_is_refused_once_the_weight_has_its_gradient(groups: Groups) -> None:
    hidden, weight, labels, loss_mask = inputs(torch.float32)
    weight.requires_grad_()
    weight.main_grad = torch.ones_like(weight)
    weight.grad_added_to_main_grad = False
    losses = head_cross_entropy(hidden, weight, labels, loss_mask, shard_of(groups))
    (losses * loss_mask).sum().backward()
    assert_near(weight.main_grad - 1, oracle(hidden, weight.detach(), labels, loss_mask)[2], 2e-6)
    assert weight.grad_added_to_main_grad, "the data-parallel wrapper would add the placeholder"
    losses = head_cross_entropy(hidden, weight, labels, loss_mask, shard_of(groups))
    with pytest.raises(RuntimeError, match=r"multiplied by 2\.0"):
        (2 * losses * loss_mask).sum().backward()


def sharded_job(gap: float, sequence_parallel: bool, vocab_size: int, dtype: torch.dtype) -> list[Any]:
    """This rank's losses and gradients; the second half of the vocabulary is `gap` more likely."""
    with groups_of(tensor_size=2) as groups:
        hidden, weight, labels, loss_mask = inputs(dtype)
        hidden[..., 0], weight[:, 0] = 1.0, 0.0
        weight[81:, 0] = gap
        rank, rows = groups.tp.rank(), 81
        own = weight[rank * rows : (rank + 1) * rows].clone().requires_grad_()
        part = hidden.chunk(2)[rank] if sequence_parallel else hidden
        part = part.clone().requires_grad_()
        shard = VocabularyShard(vocab_size=vocab_size, rows=rows, tp_group=groups.tp)
        losses = head_cross_entropy(part, own, labels, loss_mask, shard, sequence_parallel=sequence_parallel)
        (losses * loss_mask).sum().backward()
        return [tensor.detach().float().numpy() for tensor in (losses, part.grad, own.grad)]


@pytest.mark.parametrize("gap", [0.0, 30.0, 200.0, -200.0])
@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_two_ranks_give_what_one_gives(ranks: RankPool, gap: float, sequence_parallel: bool) -> None:
    arguments = {"gap": gap, "sequence_parallel": sequence_parallel, "vocab_size": VOCAB, "dtype": torch.float32}
    first, second = ranks.run(2, sharded_job, **arguments)
    hidden, weight, labels, loss_mask = inputs(torch.float32)
    hidden[..., 0], weight[:, 0] = 1.0, 0.0
    weight[81:, 0] = gap
    losses, grad_hidden, grad_weight = oracle(hidden, weight, labels, loss_mask)
    for rank in (first, second):
        assert_near(torch.from_numpy(rank[0]), losses, 2e-6)
    whole = np.concatenate([first[1], second[1]]) if sequence_parallel else first[1]
    assert_near(torch.from_numpy(whole), grad_hidden, 5e-6)
    assert_near(torch.from_numpy(np.concatenate([first[2], second[2]])), grad_weight, 5e-6)


def test_a_rank_that_holds_padding_only(ranks: RankPool) -> None:
    small = 60

    arguments = {"gap": 0.0, "sequence_parallel": False, "vocab_size": small, "dtype": torch.float32}
    hidden, weight, labels, loss_mask = inputs(torch.float32)
    first, second = ranks.run(2, sharded_job, **arguments)
    assert not second[2].any()
    hidden[..., 0], weight[:, 0] = 1.0, 0.0
    logits = (hidden.double() @ weight[:small].double().T).flatten(0, 1)
    inside = (labels < small) & (loss_mask != 0)
    assert inside.any()
    expected = torch.nn.functional.cross_entropy(logits, labels.clamp(max=small - 1).flatten(), reduction="none")
    for rank in (first, second):
        assert_near(torch.from_numpy(rank[0])[inside], expected.view_as(labels)[inside], 2e-6)


def step_job(overrides: list[str]) -> tuple[float, dict[str, np.ndarray]]:
    """Loss and this rank's gradients of one global batch through the whole model."""
    with tiny_trainable(*overrides) as trainable:
        batches = random_batches(trainable, VOCAB)
        for chunk in trainable.model_chunks:
            chunk.zero_grad_buffer()
        mean = leave_gradient(trainable, batches)
        return mean, {name: param.main_grad.numpy().copy() for name, param in weights_of(trainable).items()}


@pytest.mark.parametrize(
    "layout",
    [(1,), (1, TIED), (2, TP2), (2, TP2, SP, TIED), (2, PP2, TIED), (4, TP2, SP, PP2, TIED)],
    ids=lambda layout: "-".join(str(part).split(".")[-1] for part in layout),
)
def test_training_accumulates_what_the_unfused_loss_gives(ranks: RankPool, layout: tuple[Any, ...]) -> None:
    world_size, *overrides = layout
    fused = ranks.run(world_size, step_job, overrides=overrides)
    unfused = ranks.run(world_size, step_job, overrides=[*overrides, "model.loss_implementation=unfused"])
    for (mean, gradients), (expected_mean, expected) in zip(fused, unfused, strict=True):
        assert mean == pytest.approx(expected_mean, rel=1e-6)
        assert gradients.keys() == expected.keys()
        for name, gradient in expected.items():
            assert np.abs(gradient).max() > 0, name
            np.testing.assert_allclose(
                gradients[name], gradient, rtol=0, atol=2e-6 * np.abs(gradient).max(), err_msg=name
            )


class LargestTensor(TorchDispatchMode):
    """Remembers the largest number of elements that any operation gave out."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


@contextlib.contextmanager
def largest_tensor() -> Iterator[LargestTensor]:
    with LargestTensor() as mode:
        yield mode


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_never_whole(groups: Groups, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr(vocabulary, "BLOCK_TOKENS", 3)
    vocab_size = 4096
    hidden = torch.randn(SEQUENCE, BATCH, HIDDEN).to(dtype).requires_grad_()
    weight = torch.randn(vocab_size, HIDDEN).to(dtype).requires_grad_()
    labels = torch.randint(vocab_size, (SEQUENCE, BATCH))
    shard = VocabularyShard(vocab_size=vocab_size, rows=vocab_size, tp_group=groups.tp)
    with largest_tensor() as largest:
        head_cross_entropy(hidden, weight, labels, torch.ones(SEQUENCE, BATCH), shard).sum().backward()
    assert largest.numel == max(3 * vocab_size, weight.numel()) < SEQUENCE * BATCH * vocab_size


def test_evaluation_and_logits_take_the_same_head(groups: Groups) -> None:
    """The model gives logits without labels, and the same losses with and without a mask to fuse by."""
    from qwen_megatron.model.builder import build_model, unwrapped
    from tests.support.trainables import tiny_config

    config = tiny_config()
    model = unwrapped(build_model(config.model, groups, precision="fp32", seed=1))
    tokens = torch.arange(32).view(2, 16)
    labels = tokens + 1
    mask = torch.ones(2, 16)
    mask[1, 3] = 0
    with torch.no_grad():
        logits = model(tokens, None)
        request = HeadRequest(output=Output.TOKEN_LOSSES, labels_bs=labels, loss_mask_bs=mask)
        fused = model(tokens, None, None, request)
        unfused = model(tokens, None, None, HeadRequest(output=Output.TOKEN_LOSSES, labels_bs=labels))
    assert logits.shape == (2, 16, VOCAB)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1).double(), labels.flatten(), reduction="none")
    assert_near(unfused, expected.view(2, 16), 1e-6)
    assert_near(fused, expected.view(2, 16) * mask, 1e-6)
    assert math.isclose(fused[1, 3].item(), 0.0)
