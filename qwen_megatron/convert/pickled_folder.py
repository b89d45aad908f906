"""From pickled weights (`pytorch_model.bin`) to safetensors: the one place where a foreign pickle is opened.

Only when it is asked for, and with torch's reader that makes tensors and plain containers and refuses everything else.
"""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from data_tools.io.progress import Progress, progress_bar
from qwen_megatron.checkpoint.load import existing
from qwen_megatron.convert.config_file import read_json
from qwen_megatron.convert.hf_config import read_config
from qwen_megatron.convert.hf_folder import HfFolder
from qwen_megatron.convert.hf_paths import CONFIG, inside
from qwen_megatron.convert.output_folder import HF_FILES, WEIGHTS_SUFFIX, check_replaceable, output_folder
from qwen_megatron.convert.safetensors_file import NAMES
from qwen_megatron.convert.shards import PlannedTensor, file_names, write_index, write_shards
from qwen_megatron.errors import CheckpointError

SINGLE_PICKLE = "pytorch_model.bin"
PICKLE_INDEX = "pytorch_model.bin.index.json"

# What torch's reader raises for what it refuses, and for files that are none.
REFUSED = (pickle.UnpicklingError, RuntimeError, ValueError, TypeError, LookupError, EOFError, AttributeError, OSError)


def to_safetensors(folder: Path, out: Path, *, overwrite: bool = False) -> None:
    """Writes a Hugging Face folder of pickled weights once more, with safetensors; one shard's pages are mapped.

    Configuration and tokenizer files are copied, code is not. The result is read as `from_hf` reads it before it
    gets its name: names, shapes and dtypes of all tensors are as config.json says.

    Args:
        folder: config.json, and pytorch_model.bin or the index of several.
        out: The folder to make.
        overwrite: Replace a model that is already in `out`.
    Raises:
        CheckpointError: if a pickle holds anything but named tensors, or the tensors are not the model's.
    """
    check_replaceable(out, overwrite=overwrite)
    read_config(inside(existing(folder), CONFIG))
    files = pickled_files(folder)
    with output_folder(out, overwrite=overwrite) as partial:
        shards: dict[str, list[str]] = {}
        planned: dict[str, PlannedTensor] = {}
        total = sum(path.stat().st_size for path in files)
        with progress_bar(f"writing {out.name}", total) as progress:
            for path, file in zip(files, file_names(len(files)), strict=True):
                tensors = read_pickle(path)
                for name, tensor in tensors.items():
                    if name in planned:
                        raise CheckpointError(f"{path}: {name} is in a file before it too")
                    planned[name] = PlannedTensor(tuple(tensor.shape), tensor.dtype)
                shards[file] = list(tensors)
                write_shards(partial, {file: shards[file]}, planned, told(tensors, progress))
        write_index(partial, shards, planned)
        for path in sorted(folder.iterdir()):
            if HF_FILES.fullmatch(path.name) and not path.name.endswith((WEIGHTS_SUFFIX, ".index.json")):
                shutil.copyfile(inside(folder, path.name), partial / path.name)
        HfFolder(partial)


def pickled_files(folder: Path) -> list[Path]:
    """The files of pickled weights of a folder.

    Raises:
        CheckpointError: if there are none, or the index names a file elsewhere.
    """
    if (folder / SINGLE_PICKLE).exists():
        return [inside(folder, SINGLE_PICKLE)]
    if not (folder / PICKLE_INDEX).exists():
        raise CheckpointError(f"{folder}: has neither {SINGLE_PICKLE} nor {PICKLE_INDEX}")
    index = read_json(inside(folder, PICKLE_INDEX)).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise CheckpointError(f"{folder / PICKLE_INDEX}: has no weight_map from tensor names to files")
    return list(dict.fromkeys(inside(folder, name) for name in index.values()))


def read_pickle(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file by name, mapped rather than read.

    Raises:
        CheckpointError: if it holds anything else.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except REFUSED as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: is not a file of plain tensors ({reason}); nothing in it was run") from error
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not tensors by name")
    for name, tensor in content.items():
        if not isinstance(name, str) or type(tensor) is not torch.Tensor or tensor.layout is not torch.strided:
            raise CheckpointError(f"{path}: {name!r:.80} is no plain tensor")
        if tensor.dtype not in NAMES:
            expected = ", ".join(str(dtype) for dtype in NAMES)
            raise CheckpointError(f"{path}: {name} has dtype {tensor.dtype}; expected one of {expected}")
    return dict(content)


def told(tensors: dict[str, torch.Tensor], progress: Progress) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors one after the other."""
    for name, tensor in tensors.items():
        progress.advance(tensor.nbytes)
        yield name, tensor
