"""Passes over activations between the products of a layer on the CPU, in inference.

What torch does in several operations is done here in one reading and one writing. With a token a text each operation's
start is what counts; with a long prompt it is memory.
"""

from __future__ import annotations

import torch

from qwen_megatron import _kernels
from qwen_megatron.platforms.few_rows import IS_FAST


def takes(*tensors: torch.Tensor) -> bool:
    """Whether the passes of this module are for these tensors: on the CPU, of one dtype, in inference mode."""
    first = tensors[0]
    return (
        IS_FAST
        and torch.is_inference_mode_enabled()
        and first.is_cpu
        and first.dtype in (torch.float32, torch.bfloat16)
        and all(tensor.dtype == first.dtype for tensor in tensors)
    )


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / rms(x) * weight over the last dimension, in fp32, rounded as `model.norm.RmsNorm` rounds.

    Args:
        x: [..., h], as `takes` says.
        weight: [h] of the same dtype.
        eps: Added to the mean square.
    """
    x = x.contiguous()
    output = torch.empty_like(x)
    width = x.size(-1)
    _kernels.rms_norm(
        x.data_ptr(),
        weight.data_ptr(),
        output.data_ptr(),
        x.dtype == torch.bfloat16,
        x.numel() // max(width, 1),
        width,
        eps,
        torch.get_num_threads(),
    )
    return output


def swiglu(x: torch.Tensor) -> torch.Tensor:
    """silu(first half) * second half of the last dimension: [..., 2 * f] to [..., f]."""
    x = x.contiguous()
    width = x.size(-1) // 2
    output = x.new_empty(*x.shape[:-1], width)
    _kernels.gate(
        x.data_ptr(),
        output.data_ptr(),
        x.dtype == torch.bfloat16,
        x.numel() // max(2 * width, 1),
        width,
        torch.get_num_threads(),
    )
    return output


def rotate(x_sbnd: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates pairs (i, i + d/2) by their position's angle, in fp32.

    Args:
        x_sbnd: [s, b, n, d], as `takes` says; any strides.
        cos, sin: fp32 [s, 1, 1, d] or [s, b, 1, d].
    """
    if x_sbnd.stride(3) != 1:
        x_sbnd = x_sbnd.contiguous()
    cos, sin = cos.contiguous(), sin.contiguous()
    sequence, batch, heads, size = x_sbnd.shape
    output = x_sbnd.new_empty(sequence, batch, heads, size)
    _kernels.rotate(
        x_sbnd.data_ptr(),
        cos.data_ptr(),
        sin.data_ptr(),
        output.data_ptr(),
        x_sbnd.dtype == torch.bfloat16,
        (sequence, batch, heads, size),
        x_sbnd.stride()[:3],
        (cos.size(1) * size, size if cos.size(1) > 1 else 0),
        torch.get_num_threads(),
    )
    return output
