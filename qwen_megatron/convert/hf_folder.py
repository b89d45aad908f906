"""Reads a Hugging Face folder: safetensors and JSON only, nothing outside of it, no code."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from qwen_megatron.config.sections.model import ModelConfig
from qwen_megatron.convert.accounting import check_tensors
from qwen_megatron.convert.config_file import read_json
from qwen_megatron.convert.hf_config import read_config
from qwen_megatron.convert.hf_paths import CONFIG, inside
from qwen_megatron.convert.name_map import Entry, Format, Part, hf_tensors, ignored_names, parts, tied_copies
from qwen_megatron.convert.safetensors_file import DTYPES, SafetensorsFile, StoredTensor, size_bytes
from qwen_megatron.convert.weights import Box
from qwen_megatron.errors import CheckpointError

GENERATION_CONFIG = "generation_config.json"
SINGLE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Of two embeddings that are compared: tens of megabytes at once.
COMPARED_ROWS = 4096
# Runs of rows as long as this are read where they belong; shorter ones with their neighbours, and then put in order.
READ_IN_PLACE_BYTES = 4 << 20
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class HfFolder:
    """The weights of a Hugging Face folder in the checkpoint's layout; a `SlicedSource`.

    Opening checks names, shapes and dtypes of all tensors against the configuration; tensors are read when asked for.

    Args:
        path: The folder.
        uncached: Whether its tensors are read once, so that their pages need not stay in memory.
    Attributes:
        hf_format: Its format.
        model: The architecture its config.json describes.
        tensors: What it holds, by name.
    Raises:
        CheckpointError: naming the file, the tensor, what was expected and what was found.
    """

    hf_format: Format
    model: ModelConfig

    def __init__(self, path: Path, *, uncached: bool = False):
        self.path = path
        self.hf_format, self.model = read_config(inside(path, CONFIG))
        files, index = weight_files(path)
        self.handles = {file: open_safetensors(file, uncached=uncached) for file in files}
        self.tensors = tensors_in(self.handles)
        if index is not None:
            check_index(path / INDEX, index, self.tensors)
        check_tensors(
            path,
            expected=hf_tensors(self.model, self.hf_format),
            actual={name: (tensor.file, tensor.shape) for name, tensor in self.tensors.items()},
            ignored=ignored_names(self.model, self.hf_format),
        )
        self.dtypes = self.check_dtypes()
        self.check_tied_copy()

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(size_bytes(tensor) for tensor in self.tensors.values())

    def check_dtypes(self) -> dict[str, torch.dtype]:
        """The dtype of each entry, by key; all layers of a tensor must have the same.

        Raises:
            CheckpointError: naming the tensor that differs.
        """
        dtypes: dict[str, tuple[str, str]] = {}
        for part in parts(self.model):
            for name in part.hf_names(self.hf_format):
                tensor = self.tensors[name]
                if tensor.dtype not in DTYPES:
                    expected = ", ".join(DTYPES)
                    raise CheckpointError(f"{tensor.file}: {name} has dtype {tensor.dtype}; expected one of {expected}")
                first, dtype = dtypes.setdefault(part.entry.key, (name, tensor.dtype))
                if tensor.dtype != dtype:
                    raise CheckpointError(
                        f"{tensor.file}: {name} has dtype {tensor.dtype}; expected {dtype}, as {first} has: "
                        "the same weight must have one dtype in all layers"
                    )
        return {key: DTYPES[dtype] for key, (_, dtype) in dtypes.items()}

    def check_tied_copy(self) -> None:
        """Some writers store the output matrix of a model with tied embeddings once more: it must be the same bits.

        Raises:
            CheckpointError: naming the first row that differs.
        """
        if not self.model.tie_word_embeddings:
            return
        for copy, original in tied_copies(self.hf_format).items():
            if copy not in self.tensors:
                continue
            ours, theirs = self.tensors[original], self.tensors[copy]
            advice = (
                f"tie_word_embeddings is true in {CONFIG}, so it must be {original} bit for bit; make that false if "
                f"the model has both, or remove {copy}"
            )
            if (theirs.shape, theirs.dtype) != (ours.shape, ours.dtype):
                raise CheckpointError(
                    f"{theirs.file}: {copy} is {theirs.dtype} {list(theirs.shape)}, {original} {ours.dtype} "
                    f"{list(ours.shape)}; {advice}"
                )
            for start in range(0, ours.shape[0], COMPARED_ROWS):
                rows = slice(start, min(start + COMPARED_ROWS, ours.shape[0]))
                # As bytes: two NaN are equal, 0 and -0 are not.
                pair = [self.read_tensor(name, rows).contiguous().view(torch.uint8) for name in (original, copy)]
                if not torch.equal(*pair):
                    row = start + int((pair[0] != pair[1]).any(dim=1).nonzero()[0])
                    raise CheckpointError(f"{theirs.file}: {copy} differs from {original} in row {row}; {advice}")

    def dtype(self, entry: Entry) -> torch.dtype:
        """The dtype in which the entry's tensors are stored."""
        return self.dtypes[entry.key]

    def read(self, part: Part, rows: slice | None = None) -> torch.Tensor:
        """One part in the checkpoint's layout; see `WeightSource.read`."""
        names = part.hf_names(self.hf_format)
        shape, dtype = part.entry.shape(self.model), self.dtype(part.entry)
        runs = list(part.entry.runs(self.model, self.hf_format)) if rows is None else []
        row_bytes = math.prod(shape[1:]) * dtype.itemsize
        if len(runs) < 2 or min(run.stop - run.start for run in runs) * row_bytes < READ_IN_PLACE_BYTES:
            return part.entry.merge([self.read_tensor(name, rows) for name in names], self.model)
        values = torch.empty(shape, dtype=dtype)
        for run, target in zip(runs, values.split([run.stop - run.start for run in runs]), strict=True):
            with self.named(names[run.tensor]) as file:
                file.read_rows(names[run.tensor], run.start, target)
        return values

    def read_box(self, part: Part, box: Box) -> torch.Tensor:
        """A box of one part in the checkpoint's layout; see `SlicedSource.read_box`."""
        names = part.hf_names(self.hf_format)
        rows, *columns = box
        runs = part.entry.runs_of(rows.start, rows.stop, self.model, self.hf_format)
        pieces = [self.read_tensor(names[run.tensor], slice(run.start, run.stop), *columns) for run in runs]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def read_tensor(self, name: str, rows: slice | None = None, *columns: slice) -> torch.Tensor:
        """A tensor as it is in the folder, or a box of it, of which no more is read from the file.

        Raises:
            CheckpointError: if the file cannot be read.
        """
        with self.named(name) as file:
            return file.read(name, rows, *columns)

    @contextlib.contextmanager
    def named(self, name: str) -> Iterator[SafetensorsFile]:
        """The file that a tensor is in, to read from.

        Raises:
            CheckpointError: instead of the system's error, naming file and tensor.
        """
        file = self.tensors[name].file
        try:
            yield self.handles[file]
        except OSError as error:
            raise CheckpointError(f"{file}: {name} cannot be read ({error})") from error


def weight_files(folder: Path) -> tuple[list[Path], dict[str, Any] | None]:
    """The safetensors files of a folder, and the index (tensor name -> file name) where it is sharded.

    Raises:
        CheckpointError: if there are none, or only pickles, or an index names a file elsewhere.
    """
    single, sharded = (folder / SINGLE_FILE).exists(), (folder / INDEX).exists()
    if single and sharded:
        raise CheckpointError(f"{folder}: has both {SINGLE_FILE} and {INDEX}; remove the one that is not the model")
    if single:
        return [inside(folder, SINGLE_FILE)], None
    if not sharded:
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLE_SUFFIXES)
        if pickles:
            raise CheckpointError(
                f"{folder / pickles[0]}: is a pickle, which can run code when it is read; make safetensors of "
                f"the folder first: qwen-megatron convert to-safetensors {folder} OUT"
            )
        raise CheckpointError(f"{folder}: has neither {SINGLE_FILE} nor {INDEX}")
    path = inside(folder, INDEX)
    index = read_json(path).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise CheckpointError(f"{path}: has no weight_map from tensor names to files")
    # Each entry is checked before it is used as a key: it could be anything that JSON has.
    return list(dict.fromkeys(inside(folder, name) for name in index.values())), index


def open_safetensors(path: Path, *, uncached: bool = False) -> SafetensorsFile:
    """Opens a file of weights and checks its header.

    Args:
        path: The file.
        uncached: As of `SafetensorsFile`.
    Raises:
        CheckpointError: if it is no safetensors file, or not a whole one.
    """
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: is not a safetensors file; only those are read")
    return SafetensorsFile(path, uncached=uncached)


def tensors_in(handles: Mapping[Path, SafetensorsFile]) -> dict[str, StoredTensor]:
    """All tensors of the files.

    Raises:
        CheckpointError: if two files hold a tensor of the same name.
    """
    tensors: dict[str, StoredTensor] = {}
    for file, handle in handles.items():
        for name, stored in handle.tensors.items():
            if name in tensors:
                raise CheckpointError(f"{file}: {name} is in {tensors[name].file.name} too")
            tensors[name] = stored
    return tensors


def check_index(path: Path, index: dict[str, Any], tensors: dict[str, StoredTensor]) -> None:
    """Compares the index with what the files hold.

    Raises:
        CheckpointError: naming a tensor that is elsewhere or nowhere.
    """
    for name, file in index.items():
        if name not in tensors:
            raise CheckpointError(f"{path}: {name} should be in {file}, which does not hold it")
        if tensors[name].file.name != file:
            raise CheckpointError(f"{path}: {name} should be in {file}, but is in {tensors[name].file.name}")
    for name, tensor in tensors.items():
        if name not in index:
            raise CheckpointError(f"{tensor.file}: {name} is not in {path.name}")
