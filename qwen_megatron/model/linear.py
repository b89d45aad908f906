"""Megatron-Core's parallel linears, with the platform's product where one token is made for each of a few texts."""

from __future__ import annotations

from typing import Any, cast

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear

from qwen_megatron.platforms.few_rows import few_rows_linear


class FewRows:
    """Takes over the product itself; what goes before and after it between ranks stays Megatron-Core's."""

    def _forward_impl(
        self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, **others: Any
    ) -> torch.Tensor:
        # Under sequence parallelism the input is gathered within the product.
        output = None if others.get("sequence_parallel") else few_rows_linear(input, weight, bias)
        if output is None:
            output = super()._forward_impl(input, weight, bias=bias, **others)  # type: ignore[misc]
        return cast(torch.Tensor, output)


class ColumnLinear(FewRows, ColumnParallelLinear):
    """Each rank has some of the outputs."""


class RowLinear(FewRows, RowParallelLinear):
    """Each rank has some of the inputs; the results are summed."""
