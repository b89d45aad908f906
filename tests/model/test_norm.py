"""RMSNorm against its formula, in value, gradient and precision."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from qwen_megatron.model.norm import RmsNorm

HIDDEN = 96


def make_norm(dtype: torch.dtype, *, eps: float = 1e-6, sequence_parallel: bool = False) -> RmsNorm:
    config = SimpleNamespace(params_dtype=dtype, sequence_parallel=sequence_parallel)
    norm = RmsNorm(config, HIDDEN, eps)  # type: ignore[arg-type]
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2.0, HIDDEN))
    return norm


def formula(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight in fp64."""
    x = x.double()
    return x / torch.sqrt((x * x).mean(dim=-1, keepdim=True) + eps) * weight.double()


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e4])
def test_equals_the_formula_in_fp32(scale: float) -> None:
    x = torch.randn(7, 3, HIDDEN, generator=torch.Generator().manual_seed(0)) * scale
    norm = make_norm(torch.float32)
    torch.testing.assert_close(norm(x).double(), formula(x, norm.weight, 1e-6), rtol=1e-6, atol=0)


def test_epsilon_counts_for_small_inputs() -> None:
    x = torch.full((1, 1, HIDDEN), 1e-3)
    for eps in (1e-6, 1e-5):
        norm = make_norm(torch.float32, eps=eps)
        torch.testing.assert_close(norm(x).double(), formula(x, norm.weight, eps), rtol=1e-6, atol=0)


def test_gradients_equal_those_of_the_formula() -> None:
    x = torch.randn(5, 2, HIDDEN, generator=torch.Generator().manual_seed(1))
    upstream = torch.randn(5, 2, HIDDEN, generator=torch.Generator().manual_seed(2))
    norm = make_norm(torch.float32)
    ours = x.clone().requires_grad_()
    norm(ours).backward(upstream)
    exact, weight = x.double().requires_grad_(), norm.weight.detach().double().requires_grad_()
    formula(exact, weight, 1e-6).backward(upstream.double())
    torch.testing.assert_close(ours.grad.double(), exact.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.weight.grad.double(), weight.grad, rtol=1e-5, atol=1e-6)


def test_mean_square_is_taken_in_fp32() -> None:
    """300^2 overflows in fp16 and is off by 0.4 % in bf16; Qwen casts to fp32 first and back before the weight."""
    x = torch.randn(4, 2, HIDDEN, generator=torch.Generator().manual_seed(3)).mul(300).to(torch.bfloat16)
    norm = make_norm(torch.bfloat16)
    output = norm(x)
    assert output.dtype == norm.weight.dtype == torch.bfloat16
    normalized = formula(x, torch.ones(HIDDEN), 1e-6).to(torch.bfloat16)
    assert torch.equal(output, normalized * norm.weight)


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_weight_tells_megatron_about_sequence_parallelism(sequence_parallel: bool) -> None:
    norm = make_norm(torch.float32, sequence_parallel=sequence_parallel)
    assert norm.weight.sequence_parallel is sequence_parallel
