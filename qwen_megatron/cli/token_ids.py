"""Files of token ids, for comparison with other systems."""

from __future__ import annotations

import tokenize
from pathlib import Path
from typing import TYPE_CHECKING

from qwen_megatron.errors import ConfigError, DataError

if TYPE_CHECKING:
    import numpy as np


def check_output(path: Path) -> None:
    """Refuses a place where no file can be written.

    Raises:
        ConfigError: saying why.
    """
    if not path.parent.is_dir():
        raise ConfigError(f"--output={path}: {path.parent} is not a folder; make it first")
    if path.is_dir():
        raise ConfigError(f"--output={path}: is a folder; name a file")


def read_ids(path: Path) -> np.ndarray:
    """Token ids from a .npy file, int64 [b, s].

    Raises:
        DataError: if it is not such a file; a pickle is not looked into.
    """
    import numpy as np

    try:
        # Mapped: a header that promises more than the file holds is found before anything is allocated.
        ids = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, OverflowError, SyntaxError, MemoryError, tokenize.TokenError) as error:
        # The header is a piece of Python, which numpy reads as such.
        raise DataError(f"{path}: is not a readable .npy file of numbers ({error})") from error
    if not isinstance(ids, np.ndarray):
        raise DataError(f"{path}: is an archive of arrays; save one array with numpy.save")
    if ids.dtype != np.int64:
        raise DataError(f"{path}: has dtype {ids.dtype}; must be int64, use ids.astype('int64')")
    if ids.ndim != 2 or 0 in ids.shape:
        raise DataError(f"{path}: has shape {list(ids.shape)}; must be [batch, seq] with at least one token")
    return np.array(ids)


def check_range(path: Path, ids_bs: np.ndarray, vocab_size: int) -> None:
    """Refuses ids that the vocabulary does not have.

    Raises:
        DataError: naming the first of them.
    """
    wrong = (ids_bs < 0) | (ids_bs >= vocab_size)
    if wrong.any():
        row, column = (int(index[0]) for index in wrong.nonzero())
        raise DataError(
            f"{path}: id {ids_bs[row, column]} at [{row}, {column}] is not in the model's vocabulary "
            f"(0 to {vocab_size - 1})"
        )
