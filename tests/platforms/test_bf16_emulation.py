"""Products of bf16 in fp32, against products in fp64, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear, scaled_dot_product_attention

from qwen_megatron.platforms import bf16_emulation
from qwen_megatron.platforms.bf16_emulation import Bf16Emulation
from qwen_megatron.platforms.cpu import CpuPlatform


def draw(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).bfloat16()


def assert_rounded_once(actual: torch.Tensor, exact: torch.Tensor) -> None:
    """Half a unit in the last of bf16's 8 bits, and the error of fp32 sums."""
    assert actual.dtype == torch.bfloat16
    assert torch.all((actual.double() - exact).abs() <= exact.abs() * 2**-8 * 1.01 + 1e-5)


@pytest.mark.parametrize("shape", [(5, 7, 3), (40, 30, 700), (700, 30, 40), (30, 700, 40), (1, 1, 1), (3, 0, 2)])
@pytest.mark.parametrize("transposed", [False, True])
def test_products_are_exact_but_for_one_rounding(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int], transposed: bool
) -> None:
    monkeypatch.setattr(bf16_emulation, "BLOCK", 1000)
    m, k, n = shape
    left, right = (draw(k, m).t(), draw(n, k).t()) if transposed else (draw(m, k), draw(k, n))
    exact = left.double() @ right.double()
    with Bf16Emulation():
        assert_rounded_once(left @ right, exact)
        assert_rounded_once(torch.mm(left, right, out=left.new_empty(m, n)), exact)
        assert_rounded_once(torch.addmm(draw(n), left, right), exact + draw(n).double())
        assert_rounded_once(torch.bmm(left[None], right[None])[0], exact)


def test_a_layer_and_attention_with_their_gradients() -> None:
    inputs, weight, bias = draw(2, 8, 64, 16), draw(16, 16) / 4, draw(16)

    def run(dtype: torch.dtype) -> list[torch.Tensor]:
        leaves = [one.to(dtype).requires_grad_() for one in (inputs, weight, bias)]
        x = linear(leaves[0], leaves[1], leaves[2])
        scaled_dot_product_attention(x, x, x, is_causal=True).square().sum().backward()
        return [x.detach(), *(one.grad for one in leaves if one.grad is not None)]

    exact, own = run(torch.float64), run(torch.bfloat16)
    with Bf16Emulation():
        emulated = run(torch.bfloat16)
    assert len(emulated) == 4
    for actual, torchs, expected in zip(emulated, own, exact, strict=True):
        assert (actual.double() - expected).norm() <= 1.1 * (torchs.double() - expected).norm()


def test_other_types_stay_as_they_are() -> None:
    left, right = draw(4, 5).float(), draw(5, 6).float()
    with Bf16Emulation():
        assert torch.equal(left @ right, torch.mm(left, right))


def test_only_a_processor_without_bf16_needs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for native in (False, True):
        monkeypatch.setattr("qwen_megatron.platforms.cpu.multiplies_bf16", lambda native=native: native)
        assert isinstance(CpuPlatform().products(torch.bfloat16), Bf16Emulation) is not native
        assert not isinstance(CpuPlatform().products(torch.float32), Bf16Emulation)
