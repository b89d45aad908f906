"""What the loss does with logits of a large vocabulary, in pieces that suit the machine.

Legend: n tokens of a block, v vocabulary rows on this rank, h hidden.

A CPU does best with pieces that stay in its cache, a GPU with few and large launches: 960 of them for each 512 tokens
were most of a step there.
"""

from __future__ import annotations

import functools
import importlib
import threading
from collections.abc import Callable

import torch

# On the CPU. 512 x 152k logits in bf16 are 156 MB.
BLOCK_TOKENS = 512
# Elements that go through the softmax at a time: an fp32 piece of this size, 4 MB, stays in the cache, and threads meet
# seldom: row by row, two of them spent more time waiting for each other than they saved.
SOFTMAX_ELEMENTS = 1 << 20
# Vocabulary rows whose weight gradient is added to the fp32 buffer at a time, for the same reason.
WEIGHT_ROWS = 1024
# On a GPU, logits take this share of its memory: not of what is free, or the order of sums would follow it.
SHARE_OF_MEMORY = 64
MOST_TOKENS = 8192

# Replaces logits by exponentials in place; row maxima and sums, fp32.
Exponentiate = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def block_tokens(weight_vh: torch.Tensor) -> int:
    """Tokens whose logits are alive at a time, the same on every machine of a kind.

    Args:
        weight_vh: The output layer's rows on this rank.
    """
    if weight_vh.is_cpu:
        return BLOCK_TOKENS
    row_bytes = max(1, len(weight_vh) * weight_vh.element_size())
    most = torch.cuda.get_device_properties(weight_vh.device).total_memory // SHARE_OF_MEMORY // row_bytes
    return min(max(BLOCK_TOKENS, 1 << max(most, 1).bit_length() - 1), MOST_TOKENS)


def logits_buffer(rows: int, width: int, like: torch.Tensor) -> torch.Tensor:
    """Memory for the logits of a block, without content.

    On the CPU it is kept for the next micro-batch, which has as many: the system would clear hundreds of megabytes each
    time. On a GPU torch keeps it.

    Args:
        rows: n.
        width: v.
        like: Whose dtype and device it has.
    Returns:
        [n, v]; of use until the next call.
    """
    return kept_buffer(rows, width, like.dtype) if like.is_cpu else like.new_empty(rows, width)


def counted_rows(loss_mask_n: torch.Tensor) -> torch.Tensor | None:
    """The tokens whose loss counts, where leaving out the others saves more than it costs; None for all.

    On a GPU the host would have to wait for their number.

    Args:
        loss_mask_n: [n].
    Returns:
        int64 [m], rising.
    """
    if not loss_mask_n.is_cpu:
        return None
    rows = loss_mask_n.nonzero()[:, 0]
    return rows if len(rows) < len(loss_mask_n) else None


class Kept(threading.local):
    """The buffer of a thread: two that compute losses must not share one."""

    buffer: torch.Tensor | None = None


KEPT = Kept()


def kept_buffer(rows: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    """Of the CPU; each thread keeps one, as large as the largest of its width so far."""
    buffer = KEPT.buffer
    if buffer is None or len(buffer) < rows or buffer.size(1) != width or buffer.dtype != dtype:
        # Given up before the next one is taken.
        KEPT.buffer = buffer = None
        # Made under inference mode it could not serve training later.
        with torch.inference_mode(False):
            KEPT.buffer = buffer = torch.empty(rows, width, dtype=dtype)
    return buffer[:rows]


def exponentiate(logits_nv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Replaces logits by exp(logit - row maximum), in place.

    Args:
        logits_nv: [n, v] bf16 or fp32, contiguous.
    Returns:
        [n] fp32 row maxima, and [n] fp32 row sums of the exponentials before they are rounded.
    """
    if logits_nv.size(1) == 0:
        return logits_nv.new_full((len(logits_nv),), -torch.inf, dtype=torch.float32), logits_nv.new_zeros(
            len(logits_nv), dtype=torch.float32
        )
    fused = None if logits_nv.is_cpu else triton_exponentiate()
    return exponentiate_in_pieces(logits_nv) if fused is None else fused(logits_nv)


@functools.cache
def triton_exponentiate() -> Exponentiate | None:
    """The kernel that does it in one launch; None where there is no Triton, which CUDA builds of torch carry."""
    try:
        found: Exponentiate = importlib.import_module("qwen_megatron.platforms.triton_kernels").exponentiate
    except ImportError:
        return None
    return found


def exponentiate_in_pieces(logits_nv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`exponentiate` with torch's operations; on the CPU piece by piece through the cache."""
    count, width = logits_nv.shape
    highest = logits_nv.new_empty((count, 1), dtype=torch.float32)
    total = torch.empty_like(highest)
    step = max(1, SOFTMAX_ELEMENTS // width) if logits_nv.is_cpu else count
    buffer = logits_nv.new_empty(min(step, count), width, dtype=torch.float32)
    pieces = zip(logits_nv.split(step), highest.split(step), total.split(step), strict=True)
    for rows, row_highest, row_total in pieces:
        piece = rows if rows.dtype == torch.float32 else first_rows(buffer, len(rows)).copy_(rows)
        torch.amax(piece, dim=1, keepdim=True, out=row_highest)
        piece.sub_(row_highest).exp_()
        torch.sum(piece, dim=1, keepdim=True, out=row_total)
        if piece is not rows:
            rows.copy_(piece)
    return highest[:, 0], total[:, 0]


def add_weight_gradient(grad_vh: torch.Tensor, residual_nv: torch.Tensor, hidden_nh: torch.Tensor) -> None:
    """grad += residual^T hidden, in fp32.

    Args:
        grad_vh: [v, h] fp32.
        residual_nv: [n, v] bf16 or fp32.
        hidden_nh: [n, h] in the same dtype.
    """
    if residual_nv.dtype == torch.float32:
        grad_vh.addmm_(residual_nv.t(), hidden_nh)
        return
    if not residual_nv.is_cpu:
        # Products of bf16 that are summed into fp32 where they end: no bf16 result, no copy of it.
        torch.ops.aten.addmm.dtype_out(grad_vh, residual_nv.t(), hidden_nh, torch.float32, out=grad_vh)
        return
    # Both are used again: fresh memory for every block costs more than the addition.
    product = residual_nv.new_empty(min(WEIGHT_ROWS, len(grad_vh)), grad_vh.size(1))
    exact = torch.empty_like(product, dtype=torch.float32)
    for block, columns in zip(grad_vh.split(WEIGHT_ROWS), residual_nv.t().split(WEIGHT_ROWS), strict=True):
        rounded = first_rows(product, len(block))
        torch.mm(columns, hidden_nh, out=rounded)
        block.add_(first_rows(exact, len(block)).copy_(rounded))


def first_rows(tensor: torch.Tensor, count: int) -> torch.Tensor:
    """The tensor where it has no more rows, otherwise a view of so many."""
    return tensor if len(tensor) == count else tensor[:count]
