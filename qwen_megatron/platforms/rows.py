"""Sums of many rows into few, as the gradient of a lookup needs them, in the same order each time."""

from __future__ import annotations

import torch


def add_rows(table_vh: torch.Tensor, numbers_n: torch.Tensor, rows_nh: torch.Tensor) -> None:
    """table[numbers[i]] += rows[i], in place; the same bits each time on the same machine.

    Args:
        table_vh: [v, h].
        numbers_n: int64 [n], each below v; they may repeat.
        rows_nh: [n, h] in the table's dtype.
    """
    if table_vh.is_cpu:
        table_vh.index_add_(0, numbers_n, rows_nh)
    else:
        # A GPU's index_add_ has threads race for a row; this one sorts the numbers first.
        table_vh.index_put_((numbers_n,), rows_nh, accumulate=True)
