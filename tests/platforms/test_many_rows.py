"""Products of long prompts against fp64."""

from __future__ import annotations

import pytest
import torch

from qwen_megatron.platforms.many_rows import LEAST_ROWS, many_rows_linear


@pytest.mark.parametrize("shape", [(3, 7, 33), (LEAST_ROWS, 1, 33), (67, 3, 64), (1, 300, 5)])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_equal_those_in_fp64(shape: tuple[int, int, int], with_bias: bool, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(sum(shape))
    inputs = torch.randn(shape, generator=generator, dtype=dtype)
    weight = torch.randn(50, shape[2], generator=generator, dtype=dtype)
    bias = torch.randn(50, generator=generator, dtype=dtype) if with_bias else None
    with torch.inference_mode():
        found = many_rows_linear(inputs, weight, bias)
        # Strided inputs and weights are taken as they are meant.
        strided = many_rows_linear(inputs.transpose(0, 1), weight.t().contiguous().t(), bias).transpose(0, 1)
    exact = torch.nn.functional.linear(inputs.double(), weight.double(), None if bias is None else bias.double())
    assert (found.dtype, found.shape) == (dtype, (*shape[:2], 50))
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=2e-5)
    torch.testing.assert_close(strided.double(), exact, rtol=0, atol=2e-5)
