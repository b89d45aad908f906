"""Kernels in Triton, which CUDA builds of torch carry; importing this without it raises ImportError.

Each has its oracle in plain torch, beside which it is tested, also without a GPU (TRITON_INTERPRET=1).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

# Kernels have no annotations but `tl.constexpr`: Triton's compiler evaluates them.

# Columns that a program looks at together.
COLUMNS = 4096


@triton.jit
def exponentiate_rows(logits, highest, total, width, columns: tl.constexpr):  # type: ignore[no-untyped-def]
    """One row a program: its maximum, then exp(logit - maximum) in place and their sum."""
    row = tl.program_id(0).to(tl.int64)
    start = logits + row * width
    offsets = tl.arange(0, columns)
    peaks = tl.full([columns], float("-inf"), tl.float32)
    for first in range(0, width, columns):
        inside = first + offsets < width
        peaks = tl.maximum(peaks, tl.load(start + first + offsets, mask=inside, other=float("-inf")).to(tl.float32))
    peak = tl.max(peaks, axis=0)
    sums = tl.zeros([columns], tl.float32)
    for first in range(0, width, columns):
        inside = first + offsets < width
        value = tl.load(start + first + offsets, mask=inside, other=float("-inf")).to(tl.float32)
        value = tl.exp(value - peak)
        sums += tl.where(inside, value, 0.0)
        tl.store(start + first + offsets, value.to(logits.dtype.element_ty), mask=inside)
    tl.store(highest + row, peak)
    tl.store(total + row, tl.sum(sums, axis=0))


def exponentiate(logits_nv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Does what `platforms.vocabulary.exponentiate` does, in one launch: two reads of the logits and one write."""
    count, width = logits_nv.shape
    if not logits_nv.is_contiguous():
        raise ValueError("exponentiate takes contiguous logits")
    highest = logits_nv.new_empty(count, dtype=torch.float32)
    total = torch.empty_like(highest)
    if count:
        columns = min(COLUMNS, triton.next_power_of_2(width))
        exponentiate_rows[(count,)](logits_nv, highest, total, width, columns, num_warps=8)
    return highest, total


@triton.jit
def rotate_rows(  # type: ignore[no-untyped-def]
    source,
    target,
    cos,
    sin,
    heads,
    rows,
    row_stride,
    head_stride,
    sign,
    is_shared: tl.constexpr,
    half: tl.constexpr,
    head_block: tl.constexpr,
):
    """One token a program, all its heads: pairs (i, i + half) turned by the token's angles, in fp32."""
    token = tl.program_id(0).to(tl.int64)
    # A table has one row for a position, shared by the rows of the batch, or one for each of them.
    angle = token * (2 * half)
    if is_shared:
        angle = token // rows * (2 * half)
    pair = tl.arange(0, half)
    c = tl.load(cos + angle + pair)[None, :]
    s = tl.load(sin + angle + pair)[None, :] * sign
    for first in range(0, heads, head_block):
        head = first + tl.arange(0, head_block)
        inside = (head < heads)[:, None]
        place = token * row_stride + head[:, None] * head_stride + pair[None, :]
        one = tl.load(source + place, mask=inside, other=0.0).to(tl.float32)
        two = tl.load(source + place + half, mask=inside, other=0.0).to(tl.float32)
        out = token * heads * (2 * half) + head[:, None] * (2 * half) + pair[None, :]
        tl.store(target + out, (one * c - two * s).to(target.dtype.element_ty), mask=inside)
        tl.store(target + out + half, (two * c + one * s).to(target.dtype.element_ty), mask=inside)


def turned(x_sbnd: torch.Tensor, cos_sd: torch.Tensor, sin_sd: torch.Tensor, sign: float) -> torch.Tensor:
    """[s, b, n, d] to the same, contiguous, by the angles or back; heads of a token lie at even distances."""
    length, rows, heads, size = x_sbnd.shape
    if x_sbnd.stride(3) != 1 or x_sbnd.stride(0) != rows * x_sbnd.stride(1):
        x_sbnd = x_sbnd.contiguous()
    target = x_sbnd.new_empty(length, rows, heads, size)
    if target.numel():
        half = size // 2
        rotate_rows[(length * rows,)](
            x_sbnd,
            target,
            cos_sd.contiguous(),
            sin_sd.contiguous(),
            heads,
            rows,
            x_sbnd.stride(1),
            x_sbnd.stride(2),
            sign,
            cos_sd.size(1) == 1,
            half,
            min(16, triton.next_power_of_2(heads)),
        )
    return target


class Rotate(torch.autograd.Function):
    """`model.rotary.rotate` in one launch forward and one backward."""

    @staticmethod
    def forward(ctx: Any, x_sbnd: torch.Tensor, cos_sd: torch.Tensor, sin_sd: torch.Tensor) -> torch.Tensor:
        ctx.table = cos_sd, sin_sd
        return turned(x_sbnd, cos_sd, sin_sd, 1.0)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos_sd, sin_sd = ctx.table
        return turned(grad_outputs[0], cos_sd, sin_sd, -1.0), None, None
