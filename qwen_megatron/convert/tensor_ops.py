"""Re-orderings of tensors between Megatron-Core's layout and Hugging Face's.

Legend: n query heads, g key/value heads ("query groups"), d head size, c other axes: (H,) for a weight, () for a bias.
"""

from __future__ import annotations

import torch


def merge_qkv(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, num_query_groups: int) -> torch.Tensor:
    """Rows of Megatron's `linear_qkv`: for each query group its query heads, its key head, its value head.

    Args:
        q: [n * d, *c]
        k, v: [g * d, *c]
        num_query_groups: g.
    Returns:
        [(n + 2g) * d, *c]
    """
    per_group = [rows.reshape(num_query_groups, -1, *rows.shape[1:]) for rows in (q, k, v)]
    return torch.cat(per_group, dim=1).flatten(end_dim=1)


def split_qkv(
    qkv: torch.Tensor, *, num_attention_heads: int, num_query_groups: int, kv_channels: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The inverse of `merge_qkv`.

    Args:
        qkv: [(n + 2g) * d, *c]
        num_attention_heads, num_query_groups, kv_channels: n, g, d.
    Returns:
        q [n * d, *c], k [g * d, *c] and v [g * d, *c], contiguous.
    """
    heads_per_group = num_attention_heads // num_query_groups
    grouped = qkv.reshape(num_query_groups, -1, *qkv.shape[1:])
    sizes = [heads_per_group * kv_channels, kv_channels, kv_channels]
    q, k, v = (rows.flatten(end_dim=1).contiguous() for rows in grouped.split(sizes, dim=1))
    return q, k, v
