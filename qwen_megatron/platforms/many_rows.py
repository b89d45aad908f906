"""Products of many rows in inference, which a long prompt consists of.

torch's own go to MKL on the CPU. On a processor that is not Intel's, oneDNN, which torch has beside it, is the faster
one: by a twentieth with one thread, by a seventh with two (docs/log.md).
"""

from __future__ import annotations

import platform
from typing import cast

import torch

# For fewer rows the two are alike, and oneDNN makes code for each new number of rows.
LEAST_ROWS = 128
# An operator of torch's compiler; not in every build. Elsewhere than on x86-64 torch's own product is no MKL's.
HAS_ONEDNN = (
    torch.backends.mkldnn.is_available()
    and platform.machine() in ("x86_64", "AMD64")
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)


def many_rows_linear(input_: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """A linear layer without gradients, on any device.

    Args:
        input_: [..., i].
        weight: [o, i] of the same dtype.
        bias: [o].
    Returns:
        [..., o].
    """
    if (
        HAS_ONEDNN
        and input_.is_cpu
        and input_.dtype == torch.float32
        and input_.numel() >= LEAST_ROWS * max(weight.size(1), 1)
    ):
        rows = input_.reshape(-1, weight.size(1))
        output = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
        return cast(torch.Tensor, output.view(*input_.shape[:-1], -1))
    return torch.nn.functional.linear(input_, weight, bias)
