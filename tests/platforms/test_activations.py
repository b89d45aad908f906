"""Passes over activations on the CPU against the same in torch's operations, in fp64 where it is exact."""

from __future__ import annotations

import pytest
import torch

from qwen_megatron.model.rotary import rotary_table
from qwen_megatron.platforms import activations

# Relative: a few units in the last place of fp32; bf16 is rounded twice, as torch's own operations round it.
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 2**-7}


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    monkeypatch.setattr(activations, "IS_FAST", True)
    dtype: torch.dtype = request.param
    return dtype


def same(found: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype) -> None:
    assert found.dtype == dtype
    assert found.shape == exact.shape
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("width", [1, 7, 64, 1030])
def test_norms(dtype: torch.dtype, width: int) -> None:
    x = (torch.randn(5, 2, width) * 3).to(dtype)
    weight = torch.rand(width).to(dtype)
    with torch.inference_mode():
        assert activations.takes(x, weight)
        found = activations.rms_norm(x, weight, 1e-6)
    exact = x.double() / (x.double().square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() * weight.double()
    same(found, exact, dtype)


def test_gates_over_the_whole_range_of_the_exponential(dtype: torch.dtype) -> None:
    gates = torch.cat([torch.linspace(-200, 200, 4001), torch.tensor([0.0, -0.0, 88.7, -87.4, 1e30, -1e30])]).to(dtype)
    values = torch.full_like(gates, 0.75)
    with torch.inference_mode():
        found = activations.swiglu(torch.cat([gates, values])[None])[0]
    same(found, torch.nn.functional.silu(gates.double()) * values.double(), dtype)
    with torch.inference_mode():
        assert activations.swiglu(torch.tensor([[float("nan"), 1.0]], dtype=dtype)).isnan().all()


@pytest.mark.parametrize("rows", [1, 3])
def test_rotations_of_strided_heads(dtype: torch.dtype, rows: int) -> None:
    """Queries are a view of the product for queries, keys and values."""
    together = torch.randn(6, rows, 4, 3 * 16).to(dtype)
    query = together[..., 16:32]
    cos, sin = rotary_table(10000.0, 16, 20, torch.device("cpu"))
    for offsets in ([2] * rows, list(range(rows))):
        if len(set(offsets)) == 1:
            cosines, sines = cos[2:8], sin[2:8]
        else:
            cosines, sines = (torch.cat([table[o : o + 6] for o in offsets], dim=1) for table in (cos, sin))
        with torch.inference_mode():
            found = activations.rotate(query, cosines, sines)
        first, second = query.double().chunk(2, dim=-1)
        exact = query.double() * cosines.double() + torch.cat((-second, first), dim=-1) * sines.double()
        same(found, exact, dtype)


def test_threads_change_no_bit() -> None:
    x, weight = torch.randn(200, 1, 1024), torch.randn(1024)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            with torch.inference_mode():
                found.append((activations.rms_norm(x, weight, 1e-6), activations.swiglu(x)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_training_is_left_alone(dtype: torch.dtype) -> None:
    x = torch.randn(2, 4).to(dtype)
    assert not activations.takes(x)
    with torch.no_grad():
        assert not activations.takes(x), "evaluation while training gives the bits that it gave"
    with torch.inference_mode():
        assert not activations.takes(x.double())
        assert not activations.takes(x, x.double())
