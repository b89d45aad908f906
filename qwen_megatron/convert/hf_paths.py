"""Where the files of a Hugging Face folder are; apart from their readers, which need torch."""

from __future__ import annotations

import re
from pathlib import Path

from qwen_megatron.checkpoint.manifest import MANIFEST
from qwen_megatron.errors import CheckpointError

CONFIG = "config.json"
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def is_hf_folder(path: Path) -> bool:
    """Whether a path looks like a Hugging Face folder rather than a checkpoint of ours."""
    return (path / CONFIG).is_file() and not (path / MANIFEST).exists()


def inside(folder: Path, name: object) -> Path:
    """The path of a plain file directly in the folder.

    Raises:
        CheckpointError: if the name leads elsewhere, or there is no such file.
    """
    if not isinstance(name, str) or not FILE_NAME.fullmatch(name):
        raise CheckpointError(f"{folder}: names a file {name!r}; only plain names of files in the folder are allowed")
    path = folder / name
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path}: missing, {folder} is not a complete Hugging Face folder") from error
    if real.parent != folder.resolve():
        raise CheckpointError(
            f"{path}: is a link to {real}, outside of the folder; copy the folder with its links followed (cp -rL)"
        )
    if not real.is_file():
        raise CheckpointError(f"{path}: is not a file")
    return path
