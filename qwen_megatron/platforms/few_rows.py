"""Products of a few rows with a large matrix on the CPU, which generation consists of.

They are bound by reading the matrix. Libraries for large products read it several times slower than memory gives it, as
soon as there is more than one row or it is stored as bf16 that the processor cannot multiply (docs/benchmarks.md).
"""

from __future__ import annotations

import torch

from qwen_megatron import _kernels

# With more rows a product is bound by arithmetic.
MOST_ROWS = 16
IS_FAST = _kernels.is_fast()


def few_rows_linear(
    input_: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor | None:
    """A linear layer in inference, or None where torch's own product is the better one or gradients are wanted.

    Args:
        input_: [..., i].
        weight: [o, i] of the same dtype.
        bias: [o].
    Returns:
        [..., o]; products and sums are in fp32, rounded once.
    """
    width = weight.size(1)
    if (
        not IS_FAST
        or torch.is_grad_enabled()
        or input_.numel() > MOST_ROWS * width
        or not input_.is_cpu
        or weight.dtype not in (torch.float32, torch.bfloat16)
        or input_.dtype != weight.dtype
        or not weight.is_contiguous()
    ):
        return None
    rows = input_.reshape(-1, width).float().contiguous()
    output = torch.empty(rows.size(0), weight.size(0))
    _kernels.few_rows(
        rows=rows.data_ptr(),
        matrix=weight.data_ptr(),
        is_bf16=weight.dtype == torch.bfloat16,
        out=output.data_ptr(),
        count=rows.size(0),
        height=weight.size(0),
        width=width,
        threads=torch.get_num_threads(),
    )
    if bias is not None:
        output += bias
    return output.to(input_.dtype).view(*input_.shape[:-1], -1)
