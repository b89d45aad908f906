"""Causal attention within documents that lie one after the other, in one kernel, where the machine has one."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import torch


def has_packed_attention(query: torch.Tensor) -> bool:
    """Whether there is a kernel for such queries: not on the CPU, and not in fp32."""
    return not query.is_cpu and query.dtype in (torch.bfloat16, torch.float16) and varlen_kernel() is not None


def packed_attention(
    query_tnd: torch.Tensor,
    key_tgd: torch.Tensor,
    value_tgd: torch.Tensor,
    boundaries: torch.Tensor,
    longest: int,
    scale: float | None,
) -> torch.Tensor:
    """Attention of all documents at once, where `has_packed_attention` says so.

    Args:
        query_tnd: [t, n, d].
        key_tgd, value_tgd: [t, g, d]; g divides n.
        boundaries: int32 [documents + 1], the first token of each and t.
        longest: Tokens of the longest.
        scale: Of the scores; None for the root of d.
    Returns:
        [t, n, d].
    """
    kernel = varlen_kernel()
    assert kernel is not None
    output: torch.Tensor = kernel(
        query_tnd,
        key_tgd,
        value_tgd,
        boundaries,
        boundaries,
        longest,
        longest,
        scale=scale,
        window_size=(-1, 0),
        enable_gqa=True,
    )
    return output


@functools.cache
def varlen_kernel() -> Callable[..., Any] | None:
    """torch's kernel, from the version on whose arguments are these; None before."""
    try:
        kernel: Callable[..., Any] = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    except (ImportError, AttributeError):
        return None
    return kernel if {"window_size", "enable_gqa", "scale"} <= inspect.signature(kernel).parameters.keys() else None
