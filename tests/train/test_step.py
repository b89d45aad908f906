"""One step and one evaluation: means over tokens, and nothing changed by what is not finite."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
import torch
import torch.distributed as dist

from qwen_megatron.data.batch import Batch
from qwen_megatron.errors import TrainingError
from tests.support.ranks import RankPool
from tests.support.trainables import (
    LossFunction,
    OwnLoss,
    TinyTrainable,
    held_out_loss,
    next_token,
    parameter_bytes,
    random_batches,
    take_step,
    tiny_built,
    tiny_config,
    tiny_trainable,
    weights_of,
)

VOCAB = 161


def good_loss(losses: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The usual loss under another name: tensor-parallel ranks must all take the path of a loss of their own."""
    return next_token(losses, batch)


def nan_loss(losses: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    total, count = next_token(losses, batch)
    return total * math.nan, count


def infinite_gradient(losses: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """A finite loss whose gradient is not."""
    total, count = next_token(losses, batch)
    if total.requires_grad:
        total.register_hook(lambda gradient: gradient * math.inf)
    return total, count


def nan_in_print(losses: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """A loss that is not a number, with the gradient of a good one."""
    total, count = next_token(losses, batch)
    return total.detach() * math.nan + (total - total.detach()), count


def uneven_loss(losses: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Counts more tokens of some samples than of others, none of a few."""
    shares = torch.tensor([(sample.sample * 7) % 5 / 4 for sample in batch.samples if sample is not None])
    kept = (torch.arange(losses.size(1))[None] < shares[:, None] * losses.size(1)).float()
    return (losses.float() * kept).sum(), kept.sum().to(torch.int32)


BAD = {"nan": nan_loss, "inf": infinite_gradient, "nan loss": nan_in_print}


@pytest.fixture
def trainable() -> Iterator[TinyTrainable]:
    with tiny_trainable() as trainable:
        yield trainable


def another(trainable: TinyTrainable) -> TinyTrainable:
    """Another one, untrained, on the same groups."""
    return tiny_built(tiny_config(), trainable.groups)


def step(
    trainable: TinyTrainable, batches: Iterator[Batch], number: int, loss: LossFunction | None = None
) -> tuple[float, float]:
    result = take_step(trainable, batches, step=number, objective=None if loss is None else OwnLoss(loss))
    return result.loss, result.grad_norm


@pytest.mark.parametrize("bad", BAD)
def test_not_finite_changes_nothing(trainable: TinyTrainable, bad: str) -> None:
    batches = random_batches(trainable, VOCAB)
    step(trainable, batches, 1)
    before = parameter_bytes(trainable)
    with pytest.raises(TrainingError) as caught:
        step(trainable, batches, 2, BAD[bad])
    assert parameter_bytes(trainable) == before
    assert str(caught.value).startswith("step 2: loss=")
    assert "no weight was changed" in str(caught.value)
    assert "=nan" in str(caught.value) or "=inf" in str(caught.value)


def test_training_goes_on_after_a_refused_step_as_if_it_had_not_been(trainable: TinyTrainable) -> None:
    step(trainable, random_batches(trainable, VOCAB, seed=1), 1)
    with pytest.raises(TrainingError):
        step(trainable, random_batches(trainable, VOCAB, seed=2), 2, nan_loss)
    after = step(trainable, random_batches(trainable, VOCAB, seed=3), 2)
    content = parameter_bytes(trainable)
    other = another(trainable)
    step(other, random_batches(other, VOCAB, seed=1), 1)
    assert step(other, random_batches(other, VOCAB, seed=3), 2) == after
    assert parameter_bytes(other) == content


def refusal_job(overrides: list[str], bad: str, bad_rank: int) -> tuple[str, bool]:
    """What this rank's step raised, and whether its weights stayed; one rank has a bad loss."""
    with tiny_trainable(*overrides) as trainable:
        batches = random_batches(trainable, VOCAB)
        step(trainable, batches, 1)
        before = parameter_bytes(trainable)
        loss = BAD[bad] if dist.get_rank() == bad_rank else good_loss
        try:
            step(trainable, batches, 2, loss)
        except TrainingError as error:
            return str(error), parameter_bytes(trainable) == before
        return "nothing was raised", parameter_bytes(trainable) == before


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("bad_rank", [0, 1])
@pytest.mark.parametrize("overrides", [[], ["parallel.tensor_model_parallel_size=2"]], ids=["dp2", "tp2"])
def test_one_bad_rank_stops_all(ranks: RankPool, overrides: list[str], bad: str, bad_rank: int) -> None:
    results = ranks.run(2, refusal_job, overrides=overrides, bad=bad, bad_rank=bad_rank)
    for message, unchanged in results:
        assert message.startswith("step 2: loss=")
        assert unchanged


def measure_job(overrides: list[str], steps: int) -> list[tuple[float, float]]:
    with tiny_trainable(*overrides) as trainable:
        batches = random_batches(trainable, VOCAB)
        return [step(trainable, batches, number, uneven_loss) for number in range(1, steps + 1)]


def test_loss_and_gradient_are_means_over_tokens_not_over_micro_batches(ranks: RankPool) -> None:
    (expected,) = ranks.run(1, measure_job, overrides=[], steps=3)
    for overrides in (["training.micro_batch_size=1"], ["training.micro_batch_size=8"]):
        (other,) = ranks.run(1, measure_job, overrides=overrides, steps=3)
        np.testing.assert_allclose(other, expected, rtol=1e-6)
    for measured in ranks.run(2, measure_job, overrides=[], steps=3):
        np.testing.assert_allclose(measured, expected, rtol=1e-6)


def test_step_takes_a_steps_worth_of_batches(trainable: TinyTrainable) -> None:
    taken = 0

    def counted() -> Iterator[Batch]:
        nonlocal taken
        for batch in random_batches(trainable, VOCAB):
            taken += 1
            yield batch

    step(trainable, counted(), 1)
    assert taken == trainable.num_microbatches == 4


def test_training_lowers_the_loss_of_a_repeated_batch(trainable: TinyTrainable) -> None:
    losses = [step(trainable, random_batches(trainable, VOCAB), number)[0] for number in range(1, 21)]
    assert losses[0] == pytest.approx(math.log(VOCAB), rel=0.02)
    assert losses[-1] < losses[0] - 0.3


def test_evaluation_is_the_mean_over_counted_tokens(trainable: TinyTrainable) -> None:
    batches = list(islice(random_batches(trainable, VOCAB), 3))
    filler = batches[2]
    batches[2] = dataclasses.replace(filler, loss_mask_bs=torch.zeros_like(filler.loss_mask_bs))
    batches[1] = dataclasses.replace(
        batches[1], loss_mask_bs=torch.tensor([1.0, 0.0])[:, None].expand(-1, trainable.shape.seq_length).contiguous()
    )
    before = parameter_bytes(trainable)
    measured = held_out_loss(trainable, iter(batches), 3)
    total, count = 0.0, 0.0
    with torch.no_grad():
        for batch in batches:
            logits = trainable.models[0](batch.tokens_bs, batch.position_ids_bs, None)
            losses = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1).double(), batch.labels_bs.flatten(), reduction="none"
            )
            total += (losses * batch.loss_mask_bs.flatten()).sum().item()
            count += batch.loss_mask_bs.sum().item()
    assert count == 3 * trainable.shape.seq_length
    assert measured == pytest.approx(total / count, rel=1e-6)
    assert parameter_bytes(trainable) == before
    assert all(chunk.training for chunk in trainable.model_chunks)
    assert all(weight.grad is None for weight in weights_of(trainable).values())


def test_evaluation_between_steps_changes_nothing(trainable: TinyTrainable) -> None:
    first = step(trainable, random_batches(trainable, VOCAB, seed=1), 1)
    held_out_loss(trainable, random_batches(trainable, VOCAB, seed=9), 2)
    second = step(trainable, random_batches(trainable, VOCAB, seed=2), 2)
    other = another(trainable)
    assert step(other, random_batches(other, VOCAB, seed=1), 1) == first
    assert step(other, random_batches(other, VOCAB, seed=2), 2) == second


def test_a_step_reads_once_from_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was measured, and whether all ranks agree; on a GPU the host would wait at each other read, too."""
    reads: list[str] = []
    with tiny_trainable() as trainable:
        batches = random_batches(trainable, VOCAB)
        # Moments are made in the first step.
        take_step(trainable, batches)
        for name in ("item", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__", "nonzero"):
            original = getattr(torch.Tensor, name)

            def counted(tensor: torch.Tensor, *rest: object, original: object = original, name: str = name) -> object:
                reads.append(name)
                return original(tensor, *rest)  # type: ignore[operator]

            monkeypatch.setattr(torch.Tensor, name, counted)
        monkeypatch.setattr(torch, "equal", lambda *_: reads.append("equal"))
        assert trainable.num_microbatches == 4
        # The CPU answers at once; a GPU is not asked.
        monkeypatch.setattr("qwen_megatron.model.loss.require", lambda *_: None)
        monkeypatch.setattr("qwen_megatron.model.loss.counted_rows", lambda *_: None)
        take_step(trainable, random_batches(trainable, VOCAB), step=2)
    assert reads == ["tolist"]
