"""Products of a few rows on the CPU against fp64."""

from __future__ import annotations

import pytest
import torch

from qwen_megatron.platforms import few_rows
from qwen_megatron.platforms.few_rows import MOST_ROWS, few_rows_linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 7, 8, 33, 256])
@pytest.mark.parametrize("height", [1, 3, 130])
def test_products_equal_those_in_fp64(
    dtype: torch.dtype, width: int, height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(few_rows, "IS_FAST", True)
    generator = torch.Generator().manual_seed(width + height)
    weight = torch.randn(height, width, generator=generator).to(dtype)
    bias = torch.randn(height, generator=generator).to(dtype)
    for rows in range(1, MOST_ROWS + 1):
        inputs = torch.randn(rows, 1, width, generator=generator).to(dtype)
        with torch.inference_mode():
            found = few_rows_linear(inputs, weight, bias)
            without = few_rows_linear(inputs, weight)
        assert found is not None
        assert without is not None
        assert (found.dtype, found.shape) == (dtype, (rows, 1, height))
        exact = inputs.double() @ weight.double().t()
        tolerance = 1e-5 if dtype == torch.float32 else 2**-7 * float(exact.abs().max() + 3)
        torch.testing.assert_close(found.double(), exact + bias.double(), rtol=0, atol=tolerance)
        torch.testing.assert_close(without.double(), exact, rtol=0, atol=tolerance)


def test_threads_change_no_bit() -> None:
    weight, inputs = torch.randn(4000, 96), torch.randn(5, 96)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            with torch.inference_mode():
                found.append(few_rows_linear(inputs, weight))
    finally:
        torch.set_num_threads(threads)
    assert found[0] is not None or not few_rows.IS_FAST
    assert all(other is None or torch.equal(other, found[0]) for other in found[1:])


def test_what_it_is_not_for_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_rows, "IS_FAST", True)
    weight = torch.randn(8, 6)
    assert few_rows_linear(torch.randn(2, 6), weight) is None, "gradients are on"
    with torch.inference_mode():
        assert few_rows_linear(torch.randn(MOST_ROWS + 1, 6), weight) is None
        assert few_rows_linear(torch.randn(2, 6).bfloat16(), weight) is None
        assert few_rows_linear(torch.randn(2, 6).double(), weight.double()) is None
        assert few_rows_linear(torch.randn(2, 8), weight.t()) is None
        assert few_rows_linear(torch.randn(2, 6), weight) is not None
        # Strided inputs are taken as they are meant.
        inputs = torch.randn(6, 2).t()
        torch.testing.assert_close(few_rows_linear(inputs, weight), inputs @ weight.t())
