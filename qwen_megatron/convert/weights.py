"""What can be read like a model: the weights of a checkpoint or of a Hugging Face folder, part by part."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from qwen_megatron.config.sections.model import ModelConfig
from qwen_megatron.convert.name_map import Entry, Part
from qwen_megatron.errors import CheckpointError
from qwen_megatron.train.finite import all_finite

# A range of every axis, with start and stop.
Box = tuple[slice, ...]


class WeightSource(Protocol):
    """Weights in the checkpoint's layout, read one part at a time.

    Attributes:
        model: Architecture.
    """

    model: ModelConfig

    def dtype(self, entry: Entry) -> torch.dtype:
        """The dtype in which the entry's tensors are stored."""
        ...

    def read(self, part: Part, rows: slice | None = None) -> torch.Tensor:
        """One part, in the shape of `Entry.shape`, contiguous, on the CPU.

        Args:
            part: What to read.
            rows: Rows to read, only for parts outside of the layers; None reads all.
        Raises:
            CheckpointError: naming the file that cannot be read.
        """
        ...


@runtime_checkable
class SlicedSource(WeightSource, Protocol):
    """A source that can read a box of a part without reading the part."""

    def read_box(self, part: Part, box: Box) -> torch.Tensor:
        """A box of one part, on the CPU.

        Args:
            part: What to read.
            box: A range of every axis of `Entry.shape`, with start and stop, not empty.
        Raises:
            CheckpointError: naming the file that cannot be read.
        """
        ...


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Lets torch work in this thread alone: its others wait by spinning, on cores that hash and write meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class FiniteWeights:
    """Weights of another source, each looked at when it is read; a `WeightSource`.

    Args:
        source: Where they come from.
        path: Of that, for messages.
    Attributes:
        model: Architecture.
    """

    model: ModelConfig

    def __init__(self, source: WeightSource, path: Path):
        self.source = source
        self.path = path
        self.model = source.model

    def dtype(self, entry: Entry) -> torch.dtype:
        """As the source's."""
        return self.source.dtype(entry)

    def read(self, part: Part, rows: slice | None = None) -> torch.Tensor:
        """One part; see `WeightSource.read`.

        Raises:
            CheckpointError: if it holds NaN or infinity.
        """
        tensor = self.source.read(part, rows)
        if not all_finite(tensor):
            layer = "" if part.layer is None else f" of layer {part.layer}"
            raise CheckpointError(
                f"{self.path}: {part.entry.key}{layer} holds NaN or infinity; it is no good model. Name another one, "
                "or give --allow-nonfinite to look into it"
            )
        return tensor
