"""Shims that are applied when they are needed, for the list of a run's shims."""

from __future__ import annotations

from typing import NoReturn

from qwen_megatron.platforms.shims.checkpoint import checkpoint_shim
from qwen_megatron.platforms.shims.gloo import gloo_shim


def later_lines(backend: str) -> list[str]:
    """One line for each shim that a platform with this backend applies after `prepare`."""
    shims = [checkpoint_shim(not_applied), *([gloo_shim(not_applied)] if backend == "gloo" else [])]
    return [shim.line for shim in shims]


def not_applied(*_: object) -> NoReturn:
    """Stands in for a replacement in a shim that is listed only."""
    raise AssertionError("a shim of the list is not applied")
