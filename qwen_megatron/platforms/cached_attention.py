"""Attention of one new token of each text to the keys and values of its text, on the CPU in inference.

torch's kernel is made for blocks of queries, and needs a mask where texts differ in length. This one reads each text's
keys and values once, and only as many as the text has.

Legend: b rows, n heads, g key/value heads, c room for tokens, d head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from qwen_megatron import _kernels
from qwen_megatron.platforms.activations import takes


def takes_cached(query_bnd: torch.Tensor, keys_bgcd: torch.Tensor, values_bgcd: torch.Tensor) -> bool:
    """Whether `cached_attention` is for these tensors: those of `activations.takes`, tokens of a head one by one."""
    size = keys_bgcd.size(3)
    return (
        takes(query_bnd, keys_bgcd, values_bgcd)
        and keys_bgcd.stride() == values_bgcd.stride()
        and keys_bgcd.stride()[2:] == (size, 1)
    )


def cached_attention(
    query_bnd: torch.Tensor,
    keys_bgcd: torch.Tensor,
    values_bgcd: torch.Tensor,
    lengths: Sequence[int],
    *,
    window: int = 0,
    scale: float | None = None,
) -> torch.Tensor:
    """softmax(scale * query . keys) * values over the tokens of each text; sums are in fp32.

    Args:
        query_bnd: [b, n, d], as `takes_cached` says.
        keys_bgcd, values_bgcd: [b, g, c, d]; n is a multiple of g, and heads of a group lie together.
        lengths: Tokens of each text, the new one included; at most c.
        window: Tokens that the new one sees, itself included; 0 for all.
        scale: 1 / sqrt(d) for None.
    Returns:
        [b, n, d].
    """
    rows, heads, size = query_bnd.shape
    groups = keys_bgcd.size(1)
    if len(lengths) != rows or not all(0 < length <= keys_bgcd.size(2) for length in lengths):
        raise ValueError(f"lengths={tuple(lengths)}: {rows} from 1 to {keys_bgcd.size(2)} are needed")
    query_bnd = query_bnd.contiguous()
    output = torch.empty_like(query_bnd)
    _kernels.attention(
        query_bnd.data_ptr(),
        keys_bgcd.data_ptr(),
        values_bgcd.data_ptr(),
        output.data_ptr(),
        query_bnd.dtype == torch.bfloat16,
        (rows, groups, heads // groups, size),
        keys_bgcd.stride()[:2],
        lengths,
        window,
        size**-0.5 if scale is None else scale,
        torch.get_num_threads(),
    )
    return output
