"""Rotation of pairs of channels by fp32 angles, as the machine does it best."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable

import torch

from qwen_megatron.platforms import activations


def rotate(x_sbnd: torch.Tensor, cos_sd: torch.Tensor, sin_sd: torch.Tensor) -> torch.Tensor:
    """Rotates pairs (i, i + d/2) by their position's angle, in fp32; returns the input's dtype.

    Args:
        x_sbnd: [s, b, n, d] bf16 or fp32.
        cos_sd, sin_sd: fp32 [s, 1, 1, d] or [s, b, 1, d]; both halves of d are alike.
    """
    if activations.takes(x_sbnd):
        return activations.rotate(x_sbnd, cos_sd, sin_sd)
    fused = None if x_sbnd.is_cpu else triton_rotate(x_sbnd.size(-1) // 2)
    return rotate_in_pieces(x_sbnd, cos_sd, sin_sd) if fused is None else fused(x_sbnd, cos_sd, sin_sd)


def rotate_in_pieces(x_sbnd: torch.Tensor, cos_sd: torch.Tensor, sin_sd: torch.Tensor) -> torch.Tensor:
    """`rotate` with torch's operations."""
    x = x_sbnd.float()
    first, second = x.chunk(2, dim=-1)
    return (x * cos_sd + torch.cat((-second, first), dim=-1) * sin_sd).to(x_sbnd.dtype)


@functools.cache
def triton_rotate(half: int) -> Callable[..., torch.Tensor] | None:
    """The kernel that does it in one launch; None without Triton, and for heads whose half is no power of two."""
    if half & (half - 1):
        return None
    try:
        found: Callable[..., torch.Tensor] = importlib.import_module(
            "qwen_megatron.platforms.triton_kernels"
        ).Rotate.apply
    except ImportError:
        return None
    return found
