"""The shim that keeps Megatron-Core from unpickling checkpoint metadata freely; it holds on every platform."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from qwen_megatron.platforms.shims.registry import Rebind, apply_shims


def apply_checkpoint_shims(reader: Callable[..., Any]) -> list[str]:
    """Lets Megatron-Core's loader read through `reader(path, cache_metadata)`; returns the log lines."""
    importlib.import_module("megatron.core.dist_checkpointing.strategies.torch")
    return apply_shims([checkpoint_shim(reader)])


def checkpoint_shim(reader: Callable[..., Any]) -> Rebind:
    """Applied before tensors are loaded."""
    return Rebind(
        target="megatron.core.dist_checkpointing.strategies.torch:_get_filesystem_reader",
        reason="checkpoint metadata is read by plain pickle; when a checkpoint is loaded",
        until="Megatron-Core takes the storage reader as an argument",
        replacement=reader,
    )
