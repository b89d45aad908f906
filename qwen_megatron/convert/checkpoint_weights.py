"""Reads the weights of a checkpoint written on any layout, part by part: no model, no process group."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from pathlib import Path
from typing import cast

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from data_tools.tokenizer.qwen import NUM_TOKENS
from qwen_megatron.checkpoint.load import verify_checkpoint
from qwen_megatron.checkpoint.read_tensors import SafeReader
from qwen_megatron.checkpoint.state import CheckpointState, only_model, saved_model_config
from qwen_megatron.checkpoint.verified_beside import Verification
from qwen_megatron.config.sections.model import ModelConfig
from qwen_megatron.convert.accounting import check_tensors
from qwen_megatron.convert.name_map import Entry, Part, Rename, entries
from qwen_megatron.errors import CheckpointError
from qwen_megatron.model.head_kinds import LANGUAGE_MODEL

# fp32 copies of the weights that the optimizer works on, and its moments.
MASTERS = "optimizer.state.param."
MOMENTS = ("optimizer.state.exp_avg.", "optimizer.state.exp_avg_sq.")
WEIGHT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def with_trained_context(model: ModelConfig, state: CheckpointState) -> ModelConfig:
    """The architecture with the context that was trained on as the native one, where that is longer.

    Positions beyond `model.seq_length` are like any others unless the model stretches them, and then they are not
    trained on. A folder that names the shorter context would let others cut it there.
    """
    trained = state.config.get("training", {}).get("seq_length")
    if not isinstance(trained, int) or trained <= model.seq_length or model.use_dynamic_ntk or model.use_logn_attn:
        return model
    return dataclasses.replace(model, seq_length=trained)


class RegionPlanner(DefaultLoadPlanner):
    """Lets the storage reader write into one tensor, whatever the name."""

    def __init__(self, target: torch.Tensor):
        super().__init__()
        self.target = target

    def lookup_tensor(self, index: MetadataIndex) -> torch.Tensor:
        return self.target


class CheckpointWeights:
    """The weights of a checkpoint; a `WeightSource`.

    Opening verifies every byte of the checkpoint and accounts for every tensor of its metadata.

    Args:
        folder: An `iter_NNNNNNN` folder.
        name: Of the model, where it holds several; None for the only one.
        verification: Verifies the bytes that are read (`verified_beside`); None to verify all of them first.
    Attributes:
        model: The architecture it was trained with; `seq_length` is the context it knows, see `with_trained_context`.
        configured_context: `model.seq_length` as the run had it.
        has_qwen_tokens: Whether the tokens it was trained on are Qwen's, as far as the checkpoint tells.
        has_masters: Whether the optimizer's fp32 master weights are there too.
        prefix: What stands before the names of the tensors that are read.
    Raises:
        CheckpointError: if the checkpoint is damaged or is not one, or the model has no head over the vocabulary.
    """

    model: ModelConfig

    def __init__(self, folder: Path, name: str | None = None, *, verification: Verification | None = None):
        if verification is None:
            verify_checkpoint(folder)
        state = CheckpointState.read(folder)
        name = name or only_model(state, folder)
        head = state.model(name, folder).head
        if head != LANGUAGE_MODEL:
            raise CheckpointError(f"{folder}: model {name!r} has a {head} head, which no Hugging Face format has")
        self.folder = folder
        configured = saved_model_config(folder, name)
        self.configured_context = configured.seq_length
        self.model = with_trained_context(configured, state)
        self.has_qwen_tokens = self.model.vocab_size >= NUM_TOKENS and state.has_qwen_tokens
        self.key_prefix = state.prefix(name)
        others = tuple(state.prefix(other) for other in state.models if other != name)
        self.reader = SafeReader(folder, uncached=True, saw=None if verification is None else verification.saw)
        metadata = self.reader.read_metadata()
        self.reader.set_up_storage_reader(metadata, is_coordinator=True)
        # The reader has refused whatever is not a tensor.
        tensors = cast(dict[str, TensorStorageMetadata], metadata.state_dict_metadata)
        self.tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(others)}
        self.has_masters = any(key.startswith(self.key_prefix + MASTERS) for key in self.tensors)
        self.prefix = self.key_prefix
        self.check()

    def masters(self) -> CheckpointWeights:
        """The same checkpoint, read from its master weights."""
        view = copy.copy(self)
        view.prefix = self.key_prefix + MASTERS
        return view

    def check(self) -> None:
        """Accounts for all tensors of the metadata.

        Raises:
            CheckpointError: naming each that is missing, extra, incomplete or of a wrong shape or dtype.
        """
        path = self.folder / ".metadata"
        optimizer = tuple(self.key_prefix + group for group in (MASTERS, *MOMENTS))
        groups = [prefix for prefix in optimizer if any(key.startswith(prefix) for key in self.tensors)]
        expected, actual = {}, {}
        for prefix in (self.key_prefix, *groups):
            for entry in entries(self.model):
                expected[prefix + entry.key] = self.stored_shape(prefix + entry.key, entry)
        for key, tensor in self.tensors.items():
            actual[key] = (path, tuple(tensor.size))
        check_tensors(path, expected=expected, actual=actual)
        for key, tensor in self.tensors.items():
            dtypes = WEIGHT_DTYPES if not key.startswith(optimizer) else (torch.float32,)
            if tensor.properties.dtype not in dtypes:
                expected_dtypes = " or ".join(str(dtype) for dtype in dtypes)
                raise CheckpointError(f"{path}: {key} has dtype {tensor.properties.dtype}; expected {expected_dtypes}")
            elements, stored = math.prod(tensor.size), sum(math.prod(chunk.sizes) for chunk in tensor.chunks)
            if stored != elements:
                raise CheckpointError(f"{path}: {key} has {elements} elements, but its shards hold {stored}")

    def stored_shape(self, key: str, entry: Entry) -> tuple[int, ...]:
        """The shape a tensor must have; the vocabulary may have rows added for the layout it was written on."""
        shape = entry.shape(self.model)
        if entry.is_layered:
            return (self.model.num_layers, *shape)
        if key in self.tensors and isinstance(entry, Rename) and entry.axes[0] == "V":
            return (max([shape[0], *self.tensors[key].size[:1]]), *shape[1:])
        return shape

    def dtype(self, entry: Entry) -> torch.dtype:
        """The dtype in which the entry's tensors are stored."""
        return self.tensors[self.prefix + entry.key].properties.dtype

    def stored_rows(self, entry: Entry) -> list[slice]:
        """How the rows of a matrix outside of the layers lie in the checkpoint's files, each a piece read at once."""
        last = entry.shape(self.model)[0]
        chunks = self.tensors[self.prefix + entry.key].chunks
        ranges = sorted({(chunk.offsets[0], chunk.offsets[0] + chunk.sizes[0]) for chunk in chunks})
        # Masters are rectangles of any kind: rows that overlap are read with the first that has them.
        found, begin = [], 0
        for start, stop in ranges:
            if min(stop, last) > max(start, begin):
                found.append(slice(max(start, begin), min(stop, last)))
                begin = found[-1].stop
        return found

    def read(self, part: Part, rows: slice | None = None) -> torch.Tensor:
        """One part; see `WeightSource.read`."""
        shape = part.entry.shape(self.model)
        if rows is not None:
            start, stop, _ = rows.indices(shape[0])
            offsets, sizes = [start, *(0 for _ in shape[1:])], [stop - start, *shape[1:]]
        elif part.layer is None:
            offsets, sizes = [0 for _ in shape], [*shape]
        else:
            offsets, sizes = [part.layer, *(0 for _ in shape)], [1, *shape]
        region = self.read_region(self.prefix + part.entry.key, offsets, sizes)
        return region if part.layer is None else region[0]

    def read_region(self, key: str, offsets: list[int], sizes: list[int]) -> torch.Tensor:
        """A box of a global tensor, put together from the shards that touch it.

        Raises:
            CheckpointError: if a shard cannot be read.
        """
        tensor = self.tensors[key]
        region = ChunkStorageMetadata(offsets=torch.Size(offsets), sizes=torch.Size(sizes))
        target = torch.empty(sizes, dtype=tensor.properties.dtype)
        items = create_read_items_for_chunk_list(key, tensor, [region])
        try:
            self.reader.read_data(LoadPlan(items), RegionPlanner(target)).wait()
        except (KeyError, RuntimeError, OSError, AssertionError, ValueError, pickle.UnpicklingError) as error:
            raise CheckpointError(f"{self.folder}: {key} at {offsets} cannot be read ({error!r})") from error
        return target
