"""Micro-batches from the rank that reads to the ranks that take the same ones, in the same order.

All ranks of a pipeline stage that work on one replica (tensor- times context-parallel ranks) run the same micro-batches
one after the other. One of them reads; each micro-batch is one broadcast, made where the micro-batch is asked for.

A message is 16 bytes of header and the tensors, one after the other, laid out as in the message before. If the layout
is another one, or the reader has failed, the header says so and a text follows: JSON that is parsed and checked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from qwen_megatron.data.batch import Batch
from qwen_megatron.data.protocol import Needs
from qwen_megatron.errors import DataError, ReaderDataError, ReaderFailed
from qwen_megatron.parallel.objects import MAX_BYTES, decode, dict_of, encode, list_of, of_type, refuse
from qwen_megatron.platforms.comm_timer import comm_timer

READER = 0
ALL = Needs()
HEADER_BYTES = 16
# Every tensor begins where any type may.
ALIGNMENT = 16
SAME, CHANGED, FAILED = range(3)
# Of a reader's message to the others; the reader itself reports all of it.
MAX_MESSAGE = 4000
# Of a micro-batch: a message of a stranger must not take all memory.
MAX_BATCH_BYTES = 2**36
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.bool,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
    )
}
TOKENS, TARGETS, DOCUMENTS = ("tokens_bs", "position_ids_bs"), ("labels_bs", "loss_mask_bs"), "document_ids_bs"
EXTRA = "extras."


@dataclass(frozen=True, kw_only=True)
class Slot:
    """Where one tensor of a batch lies in a message.

    Attributes:
        name: Field of the batch, or `extras.` and a name.
        dtype: Name of its type.
        shape: Its shape.
        start: First byte.
        stop: Byte after the last.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


Layout = tuple[Slot, ...]


def layout_of(named: Sequence[tuple[str, str, Sequence[int]]]) -> Layout:
    """Places tensors, given by name, type and shape, one after the other."""
    slots, start = [], 0
    for name, dtype, shape in named:
        stop = start + math.prod(shape) * DTYPES[dtype].itemsize
        slots.append(Slot(name=name, dtype=dtype, shape=tuple(shape), start=start, stop=stop))
        start = stop + -stop % ALIGNMENT
    return tuple(slots)


def size_of(layout: Layout) -> int:
    """Bytes of the tensors in a message."""
    return layout[-1].stop if layout else 0


def tensors_of(batch: Batch, needs: Needs = ALL) -> dict[str, torch.Tensor]:
    """What a pipeline stage looks at in a batch, but where its samples come from, which every rank knows."""
    names = (*(TOKENS if needs.tokens else ()), *(TARGETS if needs.targets else ()), DOCUMENTS)
    present = {name: getattr(batch, name) for name in names if getattr(batch, name) is not None}
    extras = batch.extras if needs.targets else {}
    return present | {f"{EXTRA}{name}": tensor for name, tensor in extras.items()}


def batch_of(blank: Batch, tensors: Mapping[str, torch.Tensor]) -> Batch:
    """The inverse of `tensors_of`; what is not among the tensors is as in the other batch."""
    fields: dict[str, Any] = {name: tensors[name] for name in (*TOKENS, *TARGETS, DOCUMENTS) if name in tensors}
    extras = {name.removeprefix(EXTRA): tensor for name, tensor in tensors.items() if name.startswith(EXTRA)}
    return dataclasses.replace(blank, **fields, extras=extras)


class SharedBatches:
    """One stream of micro-batches over a group; made on all its ranks, which take as many of it as each other.

    Args:
        group: Ranks that take the same micro-batches; the first of them reads. It sends tensors of the host: what the
            others look at would otherwise have to come back from a device, for which the host would wait.
        blank: Makes a batch of zeros of samples.
        needs: What their pipeline stage looks at; the rest is not sent.
    """

    def __init__(self, group: dist.ProcessGroup, blank: Callable[[Sequence[object | None]], Batch], needs: Needs = ALL):
        self.group = group
        self.blank = blank
        self.needs = needs
        self.layout: Layout = ()

    def send(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Passes batches on and sends each to the other ranks first; an error is told to them and raised."""
        while True:
            try:
                batch = next(batches, None)
            except Exception as error:
                # If they are gone, what went wrong here is still the news.
                with contextlib.suppress(RuntimeError):
                    self.tell(FAILED, {"is_data": isinstance(error, DataError), "message": described(error)})
                raise
            if batch is None:
                return
            self.send_one(batch)
            yield batch

    def send_one(self, batch: Batch) -> None:
        """Sends a micro-batch, and before it how it is laid out, if that has changed."""
        tensors = tensors_of(batch, self.needs)
        named = [(name, str(t.dtype).removeprefix("torch."), list(t.shape)) for name, t in tensors.items()]
        layout = layout_of(named)
        if layout != self.layout:
            self.tell(CHANGED, [{"name": name, "dtype": dtype, "shape": shape} for name, dtype, shape in named])
            self.layout = layout
        message = torch.zeros(HEADER_BYTES + size_of(layout), dtype=torch.uint8)
        message[:HEADER_BYTES] = torch.tensor([SAME, 0]).view(torch.uint8)
        content = message[HEADER_BYTES:]
        for slot in layout:
            content[slot.start : slot.stop] = tensors[slot.name].contiguous().flatten().view(torch.uint8)
        self.broadcast(message)

    def tell(self, status: int, value: Any) -> None:
        """Sends a text in place of a batch."""
        text = torch.frombuffer(bytearray(encode(value)), dtype=torch.uint8)
        message = torch.zeros(HEADER_BYTES + size_of(self.layout), dtype=torch.uint8)
        message[:HEADER_BYTES] = torch.tensor([status, len(text)]).view(torch.uint8)
        self.broadcast(message)
        self.broadcast(text)

    def receive(self, ids: Iterator[Sequence[object | None]]) -> Iterator[Batch]:
        """The batches that the reader sends.

        Args:
            ids: Samples of each, as the reader's.
        Raises:
            ReaderFailed: if the reader could not read one; `ReaderDataError` if it found a file damaged.
            PlatformError: if something else arrives.
        """
        for samples in ids:
            yield batch_of(self.blank(samples), self.receive_one())

    def receive_one(self) -> dict[str, torch.Tensor]:
        """Receives the tensors of a micro-batch, by name; an error of the reader is raised here too."""
        source = dist.get_global_rank(self.group, READER)
        while True:
            message = self.broadcast(torch.empty(HEADER_BYTES + size_of(self.layout), dtype=torch.uint8))
            status, length = message[:HEADER_BYTES].view(torch.int64).tolist()
            if status == SAME:
                break
            if status not in (CHANGED, FAILED) or not 0 < length <= MAX_BYTES:
                refuse(source, f"a micro-batch with a header of {status}, {length}")
            text = self.broadcast(torch.empty(length, dtype=torch.uint8)).numpy().tobytes()
            if status == FAILED:
                raise decode(text, functools.partial(failure_of, source), source)
            self.layout = decode(text, parse_layout, source)
        content = message[HEADER_BYTES:]
        return {
            slot.name: content[slot.start : slot.stop].view(DTYPES[slot.dtype]).view(slot.shape) for slot in self.layout
        }

    def broadcast(self, message: torch.Tensor) -> torch.Tensor:
        """Sends or receives one message of the reader."""
        with comm_timer():
            dist.broadcast(message, group_src=READER, group=self.group)
        return message


def described(error: Exception) -> str:
    """What other ranks get to know of an error."""
    told = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
    return told[:MAX_MESSAGE]


def failure_of(source: int, value: Any) -> ReaderFailed:
    """The error that a reader's text stands for."""
    told = dict_of(of_type(str, bool))(value)
    if told["is_data"] is True:
        return ReaderDataError(f"{told['message']} (read by rank {source})")
    return ReaderFailed(f"rank {source}, which reads the samples of this one, failed: {told['message']}")


def parse_layout(value: Any) -> Layout:
    """The layout in a reader's text.

    Raises:
        ValueError, TypeError, KeyError: if it is none.
    """
    named = []
    for entry in list_of(of_type(dict))(value):
        name, dtype = of_type(str)(entry["name"]), of_type(str)(entry["dtype"])
        shape = list_of(of_type(int))(entry["shape"])
        if min(shape, default=0) < 0:
            raise ValueError(f"{name} of shape {shape}")
        named.append((name, dtype, shape))
    layout = layout_of(named)
    if size_of(layout) > MAX_BATCH_BYTES:
        raise ValueError(f"a micro-batch of {size_of(layout)} bytes")
    return layout
