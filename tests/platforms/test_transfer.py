"""Copies beside the computations: the order of what is queued, held against a device that copies late."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pytest
import torch

from qwen_megatron.data.batch import Batch
from qwen_megatron.platforms import get_platform
from qwen_megatron.platforms.cuda import CudaPlatform, CudaStreams
from qwen_megatron.platforms.transfer import Copies, CopiesAhead, begun_ahead
from tests.support.trainables import (
    TinyTrainable,
    held_out_loss,
    parameter_bytes,
    random_batches,
    take_step,
    tiny_built,
    tiny_config,
    tiny_trainable,
)

VOCAB = 161
POISON = {torch.int64: VOCAB + 7, torch.float32: torch.nan, torch.int32: 10**6}


class LateStreams:
    """A device whose copies arrive when computations wait for them, and not before: until then they are poison.

    Attributes:
        log: What was asked of it, in order.
    """

    def __init__(self) -> None:
        self.log: list[str] = []
        self.queue: list[Callable[[], object]] = []
        self.copied: dict[int, torch.Tensor] = {}
        self.marks = 0
        self.inside = False

    @contextlib.contextmanager
    def beside(self) -> Iterator[None]:
        self.inside = True
        yield
        self.inside = False

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        assert self.inside
        copy = torch.full_like(tensor, POISON[tensor.dtype], memory_format=torch.contiguous_format)
        self.queue.append(lambda: copy.copy_(tensor))
        self.copied[id(copy)] = copy
        self.log.append("copy")
        return copy

    def mark(self) -> list[Callable[[], object]]:
        assert self.inside
        self.marks += 1
        self.log.append(f"mark {self.marks}")
        due, self.queue = self.queue, []
        return due

    def wait(self, mark: list[Callable[[], object]]) -> None:
        assert not self.inside
        self.log.append("wait")
        for copy in mark:
            copy()

    def keep(self, tensor: torch.Tensor) -> None:
        del self.copied[id(tensor)]
        self.log.append("keep")


def test_a_micro_batch_comes_while_the_one_before_is_worked_on() -> None:
    streams = LateStreams()
    copies = CopiesAhead(streams)
    numbers = (torch.tensor(number) for number in range(3))
    results = begun_ahead(numbers, lambda number: copies.begin(lambda move: (move(number), move(number))), copies.ahead)
    assert streams.log == []
    first, _ = next(results)
    assert first == 0
    # The second is on its way before the first is used, and each is waited for and kept once it is handed out.
    assert streams.log == ["copy", "copy", "mark 1", "copy", "copy", "mark 2", "wait", "keep", "keep"]
    assert [int(one) for one, _ in results] == [1, 2]
    assert streams.log.count("wait") == streams.marks == 3
    assert streams.copied == {}


def test_on_the_cpu_nothing_is_copied_and_nothing_begins_early() -> None:
    taken = 0

    def numbers() -> Iterator[torch.Tensor]:
        nonlocal taken
        for number in range(4):
            taken += 1
            yield torch.tensor(number)

    copies = get_platform("cpu").copies(torch.device("cpu"))
    assert type(copies) is Copies
    for count, tensor in enumerate(begun_ahead(numbers(), lambda one: copies.begin(lambda move: move(one)), 0), 1):
        assert (taken, int(tensor)) == (count, count - 1)
    one = torch.ones(3)
    assert copies.begin(lambda move: move(one))() is one


def test_what_is_on_the_device_already_is_not_copied() -> None:
    streams = LateStreams()
    there = torch.empty(2, device="meta")
    assert CopiesAhead(streams).begin(lambda move: move(there))() is there
    assert streams.log == ["mark 1", "wait"]


def late(trainable: TinyTrainable, streams: LateStreams) -> TinyTrainable:
    """The same model on a machine whose copies come late."""

    class LateMachine(type(trainable.platform)):  # type: ignore[misc]
        def copies(self, device: torch.device) -> Copies:
            return CopiesAhead(streams)

    return dataclasses.replace(trainable, platform=LateMachine())


SETTINGS = [
    (),
    ("data.mask_documents=true",),
    ("model.hidden_dropout=0.1", "model.attention_dropout=0.1", "model.implementation=torch"),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=["plain", "documents", "dropout"])
def test_a_step_waits_for_every_copy_it_uses(settings: tuple[str, ...]) -> None:
    with tiny_trainable(*settings) as plain:
        other = late(tiny_built(tiny_config(*settings), plain.groups), streams := LateStreams())
        results = [take_step(one, random_batches(one, VOCAB)) for one in (plain, other)]
        assert results[0] == results[1]
        assert parameter_bytes(plain) == parameter_bytes(other)
        assert streams.log.count("wait") == other.num_microbatches == 4
        measured = [held_out_loss(one, random_batches(one, VOCAB, seed=4), 3) for one in (plain, other)]
        assert measured[0] == measured[1]
        assert streams.copied == {}


def test_a_steps_worth_is_taken_though_one_comes_early() -> None:
    with tiny_trainable() as plain:
        trainable = late(plain, LateStreams())
        taken: list[Batch] = []
        batches = (taken.append(batch) or batch for batch in random_batches(trainable, VOCAB))  # type: ignore[func-returns-value]
        take_step(trainable, batches)
        assert len(taken) == trainable.num_microbatches
        held_out_loss(trainable, islice(batches, 2), 2)
        assert len(taken) == trainable.num_microbatches + 2


READS = (
    "item",
    "tolist",
    "numpy",
    "cpu",
    "__bool__",
    "__float__",
    "__int__",
    "__index__",
    "nonzero",
    "equal",
    "unique",
)


class OnDevice(torch.Tensor):
    """A tensor of a GPU as far as this matters: it, and what is computed from it, notes when the host reads it."""

    reads: list[str] = []  # noqa: RUF012 - of the test that runs

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        if name in READS or name.startswith("unique"):
            cls.reads.append(name)
        return super().__torch_function__(function, types, arguments, options or {})


class WatchedStreams(LateStreams):
    """Copies are tensors whose reads are counted."""

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        copy = super().copy(tensor)
        watched = copy.as_subclass(OnDevice)
        self.copied[id(watched)] = self.copied.pop(id(copy))
        return watched


@pytest.mark.parametrize("settings", SETTINGS, ids=["plain", "documents", "dropout"])
def test_a_step_reads_once_of_what_follows_from_a_batch(
    settings: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the host would wait for a GPU in every micro-batch, or in every layer of each."""
    # The CPU answers at once; a GPU is not asked.
    monkeypatch.setattr("qwen_megatron.model.loss.require", lambda *_: None)
    monkeypatch.setattr("qwen_megatron.model.loss.counted_rows", lambda *_: None)
    with tiny_trainable(*settings) as plain:
        watched = late(tiny_built(tiny_config(*settings), plain.groups), WatchedStreams())
        OnDevice.reads = []
        results = [take_step(one, random_batches(one, VOCAB)) for one in (plain, watched)]
        assert results[0] == results[1]
        assert OnDevice.reads == ["tolist"]


def test_a_gpu_copies_from_pinned_memory_on_a_stream_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    class Stream:
        def __init__(self, device: torch.device):
            self.name = f"beside {device}"

        def record_event(self) -> str:
            calls.append(("record", self.name))
            return "event"

        def wait_event(self, event: str) -> None:
            calls.append(("wait", event))

    @contextlib.contextmanager
    def entered(stream: Stream) -> Iterator[None]:
        calls.append(("enter", stream.name))
        yield
        calls.append(("leave",))

    computing = Stream(torch.device("meta"))
    computing.name = "computing"
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", entered)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computing)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: calls.append(("pin",)) or tensor)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: calls.append(("keep", stream.name)))
    device = torch.device("meta")
    copies = CudaPlatform().copies(device)
    assert isinstance(copies, CopiesAhead)
    assert isinstance(copies.streams, CudaStreams)
    hand_out = copies.begin(lambda move: move(torch.ones(3)))
    assert calls == [("enter", f"beside {device}"), ("pin",), ("record", f"beside {device}"), ("leave",)]
    assert hand_out().device == device
    assert calls[4:] == [("wait", "event"), ("keep", "computing")]
