"""Micro-batches stream: taken when the first forward asks, held no longer than needed, kept where they may be again."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from qwen_megatron.data.batch import Batch, make_batch
from qwen_megatron.model.attention_context import AttentionContext
from qwen_megatron.train import step as step_module
from qwen_megatron.train.micro_batches import StepBatches, fanned_out, on_stage
from qwen_megatron.train.step_guard import FEWEST, StepGuard
from tests.support.ranks import RankPool
from tests.support.trainables import held_out_loss, random_batches, take_step, tiny_trainable

VOCAB = 161


def test_an_item_is_taken_when_the_first_asks_and_held_until_the_last_has_it() -> None:
    taken: list[int] = []

    def source() -> Iterator[int]:
        for number in range(6):
            taken.append(number)
            yield number

    first, second = fanned_out(source(), 2)
    assert taken == []
    assert [next(first), next(first)] == [0, 1]
    assert next(second) == 0
    assert taken == [0, 1]
    assert [next(second), next(second)] == [1, 2]
    assert taken == [0, 1, 2]
    assert list(first) == [2, 3, 4, 5]
    assert list(second) == [3, 4, 5]


class Item:
    pass


@pytest.mark.parametrize("number", [1, 3])
def test_what_all_have_had_is_let_go(number: int) -> None:
    alive: weakref.WeakSet[Item] = weakref.WeakSet()

    def source() -> Iterator[Item]:
        for _ in range(100):
            item = Item()
            alive.add(item)
            yield item
            del item

    streams = fanned_out(source(), number)
    for _ in range(100):
        for stream in streams:
            next(stream)
        # What nothing refers to is gone at once; a collection would walk through the whole process a hundred times.
        assert len(alive) <= 1


def test_a_step_that_may_run_again_has_its_batches_again() -> None:
    source: Any = iter(range(10))
    kept = StepBatches(source, 4, keeps=True)
    assert [list(kept) for _ in range(3)] == [[0, 1, 2, 3]] * 3
    once = StepBatches(source, 4, keeps=False)
    assert list(once) == [4, 5, 6, 7]
    with pytest.raises(RuntimeError, match="were not kept"):
        iter(once)
    assert next(source) == 8


def test_batches_are_kept_only_where_a_spike_can_be_seen() -> None:
    guard = StepGuard(spike_sigmas=10.0)
    assert not guard.may_run_again
    guard.recent.extend([1.0] * FEWEST)
    assert guard.may_run_again
    assert not StepGuard().may_run_again


def taken_at_each_forward(overrides: list[str]) -> tuple[list[int], list[int], int]:
    """How many micro-batches had been taken at every forward pass of a step, and of an evaluation of six."""
    taken, seen = 0, []
    original = step_module.forward_step

    def forward_step(batches: Iterator[Batch], *args: Any, **options: Any) -> Any:
        seen.append(taken)
        return original(batches, *args, **options)

    step_module.forward_step = forward_step
    try:
        with tiny_trainable(*overrides) as trainable:

            def counted() -> Iterator[Batch]:
                nonlocal taken
                for batch in random_batches(trainable, VOCAB):
                    taken += 1
                    yield batch

            take_step(trainable, counted())
            training, taken = list(seen), 0
            seen.clear()
            held_out_loss(trainable, counted(), 8)
            return training, list(seen), trainable.num_microbatches
    finally:
        step_module.forward_step = original


def test_the_first_forward_waits_for_one_micro_batch(ranks: RankPool) -> None:
    ((training, evaluation, count),) = ranks.run(1, taken_at_each_forward, overrides=[])
    assert training == list(range(count))
    assert evaluation == list(range(8))


def test_the_first_forward_of_an_interleaved_pipeline_waits_for_one(ranks: RankPool) -> None:
    stages = ["parallel.pipeline_model_parallel_size=2", "parallel.virtual_pipeline_model_parallel_size=2"]
    layout = [*stages, "model.num_layers=4"]
    for training, evaluation, count in ranks.run(2, taken_at_each_forward, overrides=layout):
        for seen, number in ((training, count), (evaluation, 8)):
            # Both chunks see every micro-batch; the second takes none that the first has not.
            assert len(seen) == 2 * number
            assert seen[0] == 0
            assert seen[-1] == number
            assert seen[2] == 2
            assert seen == sorted(seen)


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        (True, True, {"tokens_bs", "labels_bs", "loss_mask_bs", "weights"}),
        (True, False, {"tokens_bs"}),
        (False, False, set()),
        (False, True, {"labels_bs", "loss_mask_bs", "weights"}),
    ],
    ids=["one stage", "first", "middle", "last"],
)
def test_a_stage_gets_on_its_device_what_it_looks_at(first: bool, last: bool, expected: set[str]) -> None:
    batch = make_batch([np.arange(5)], ["a"], 4, 9, mask_documents=True)
    batch = dataclasses.replace(batch, extras={"weights": torch.ones(1)})
    groups: Any = SimpleNamespace(is_first_stage=first, is_last_stage=last)
    context = AttentionContext(document_ids_bs=batch.document_ids_bs, dropout_keys_b=torch.tensor([3]))
    meta = torch.device("meta")
    part = on_stage(batch, context, groups, lambda tensor: tensor.to(meta))
    tensors = {"weights": part.batch.extras["weights"]} | {
        name: getattr(part.batch, name) for name in ("tokens_bs", "labels_bs", "loss_mask_bs", "position_ids_bs")
    }
    assert {name for name, tensor in tensors.items() if tensor.is_meta} == expected
    # What the layers look at goes to every stage; what they need as numbers was read on the host.
    assert part.context is not None
    assert part.context.document_ids_bs is not None
    assert part.context.document_ids_bs.is_meta
    assert part.context.documents is not None
    assert part.context.documents.boundaries.is_meta
    assert part.context.documents.lengths == ((4,),)
    assert part.context.host_keys == (3,)
    assert on_stage(batch, None, groups, torch.clone).context is None
