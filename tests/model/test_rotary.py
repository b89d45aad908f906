"""Rotary positions against complex numbers; dynamic NTK and LogN against values of the released code."""

from __future__ import annotations

import math

import pytest
import torch

from qwen_megatron.model.rotary import RotarySettings, dynamic_ntk_base, logn_scale, rotary_table
from qwen_megatron.platforms.rotation import rotate

CPU = torch.device("cpu")
SETTINGS = RotarySettings(head_size=16, base=10000.0, native_length=64, use_dynamic_ntk=True, use_logn_attn=True)


def rotated(x_sbnd: torch.Tensor, base: float = 10000.0) -> torch.Tensor:
    return rotate(x_sbnd, *rotary_table(base, x_sbnd.size(-1), x_sbnd.size(0), CPU))


def as_complex_numbers(x_sbnd: torch.Tensor, base: float) -> torch.Tensor:
    """Pairs (i, i + d/2) as complex numbers times exp(1j * position * base^(-2i/d)); fp64 but for the angles, fp32."""
    length, half = x_sbnd.size(0), x_sbnd.size(-1) // 2
    frequencies = 1.0 / base ** (torch.arange(half, dtype=torch.float32) * 2 / (2 * half))
    angles = torch.arange(length, dtype=torch.float32)[:, None] * frequencies
    turned = torch.complex(x_sbnd[..., :half].double(), x_sbnd[..., half:].double()) * torch.polar(
        torch.ones_like(angles, dtype=torch.float64), angles.double()
    ).view(length, 1, 1, half)
    return torch.cat((turned.real, turned.imag), dim=-1)


@pytest.mark.parametrize("base", [10000.0, 1e6])
def test_equals_complex_rotation(base: float) -> None:
    x = torch.randn(200, 2, 3, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rotated(x, base).double(), as_complex_numbers(x, base), rtol=0, atol=2e-6)


def test_angles_are_those_of_position_and_channel() -> None:
    cos, sin = rotary_table(100.0, 4, 3, CPU)
    assert cos.shape == sin.shape == (3, 1, 1, 4)
    assert cos.dtype == sin.dtype == torch.float32
    expected = torch.tensor([[0.0, 0.0], [1.0, 0.1], [2.0, 0.2]])
    expected = torch.cat((expected, expected), dim=-1)[:, None, None, :]
    torch.testing.assert_close(cos, expected.cos())
    torch.testing.assert_close(sin, expected.sin())


def test_scores_depend_on_distance_only() -> None:
    query, key = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(1))
    queries, keys = rotated(query.expand(50, 1, 1, 16)), rotated(key.expand(50, 1, 1, 16))
    scores = torch.einsum("ibnd,jbnd->ij", queries, keys)
    for distance in (0, 1, 17):
        diagonal = scores.diagonal(offset=-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=1e-5)
    assert (scores[0, 0] - scores[1, 0]).abs() > 1e-2


def test_low_precision_is_rotated_in_fp32() -> None:
    x = torch.randn(300, 1, 2, 16, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)
    output = rotated(x)
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, rotated(x.float()).to(torch.bfloat16))


def test_tables_made_while_evaluating_serve_training() -> None:
    """Tables are kept; inference mode must not leave one behind that autograd refuses."""
    with torch.inference_mode():
        rotated(torch.ones(23, 1, 1, 16))
    x = torch.ones(23, 1, 1, 16, requires_grad=True)
    rotated(x).sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize(("length", "alpha"), [(1, 1), (64, 1), (65, 3), (128, 3), (129, 7), (256, 7), (257, 15)])
def test_dynamic_ntk_base(length: int, alpha: int) -> None:
    assert dynamic_ntk_base(SETTINGS, length) == pytest.approx(10000.0 * alpha ** (16 / 14), rel=1e-12)


@pytest.mark.parametrize(
    ("native", "length", "alpha"), [(8192, 8193, 3), (8192, 16384, 3), (8192, 32768, 7), (2048, 8192, 7)]
)
def test_dynamic_ntk_base_of_released_lengths(native: int, length: int, alpha: int) -> None:
    settings = RotarySettings(head_size=128, base=10000.0, native_length=native)
    assert dynamic_ntk_base(settings, length) == pytest.approx(10000.0 * alpha ** (128 / 126), rel=1e-12)


def test_logn_scale() -> None:
    scale = logn_scale(SETTINGS, 200, CPU)
    assert scale.shape == (200, 1, 1, 1)
    assert scale.dtype == torch.float32
    flat = scale.flatten()
    assert torch.equal(flat[:64], torch.ones(64))
    for position in (65, 100, 128, 200):
        assert flat[position - 1].item() == pytest.approx(math.log(position) / math.log(64), rel=1e-6)
    assert (flat[64:].diff() > 0).all()
