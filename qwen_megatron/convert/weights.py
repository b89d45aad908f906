"""What can be read like a model: the weights of a checkpoint or of a Hugging Face folder, part by part."""

from __future__ import annotations

from typing import Protocol

import torch

from qwen_megatron.config.model import ModelConfig
from qwen_megatron.convert.name_map import Entry, Part


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
