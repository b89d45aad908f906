"""Writes tensors one after the other into safetensors files of bounded size."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from data_tools.io.atomic_file import atomic_path, write_atomically
from qwen_megatron.convert.hf_folder import INDEX, SINGLE_FILE
from qwen_megatron.convert.safetensors_file import write_safetensors


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to be written."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size_bytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * self.dtype.itemsize


def plan_shards(tensors: Mapping[str, PlannedTensor], max_bytes: int) -> dict[str, list[str]]:
    """Distributes tensors over files, in their order.

    Args:
        tensors: What is going to be written.
        max_bytes: Most bytes of tensors in a file; a larger tensor gets a file of its own.
    Returns:
        Tensor names by file name; a single file has its own usual name.
    """
    shards: list[list[str]] = [[]]
    filled = 0
    for name, tensor in tensors.items():
        if shards[-1] and filled + tensor.size_bytes > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += tensor.size_bytes
    return dict(zip(file_names(len(shards)), shards, strict=True))


def file_names(count: int) -> list[str]:
    """Names of so many files of weights; a single one has its own usual name."""
    if count == 1:
        return [SINGLE_FILE]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def write_shards(
    folder: Path,
    shards: Mapping[str, Sequence[str]],
    planned: Mapping[str, PlannedTensor],
    tensors: Iterable[tuple[str, torch.Tensor]],
) -> None:
    """Writes the files; one tensor at a time is in memory.

    Args:
        folder: Where to.
        shards: As from `plan_shards`.
        planned: What is written.
        tensors: All planned tensors in the planned order.
    """
    stream = iter(tensors)
    for file, names in shards.items():
        content = {name: (planned[name].shape, planned[name].dtype) for name in names}
        with atomic_path(folder / file) as temporary:
            write_safetensors(temporary, content, itertools.islice(stream, len(names)))


def write_index(folder: Path, shards: dict[str, list[str]], tensors: Mapping[str, PlannedTensor]) -> None:
    """Writes the index from tensor names to files; a single file needs none."""
    if len(shards) == 1:
        return
    index = {
        "metadata": {"total_size": sum(tensor.size_bytes for tensor in tensors.values())},
        "weight_map": {name: file for file, names in shards.items() for name in names},
    }
    write_atomically(folder / INDEX, (json.dumps(index, indent=2) + "\n").encode())
