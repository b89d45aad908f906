"""Kernels in Triton against torch's operations, through Triton's interpreter: no GPU is needed, but Triton is."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from qwen_megatron.platforms.rotation import rotate_in_pieces
from qwen_megatron.platforms.vocabulary import exponentiate_in_pieces


@pytest.fixture(scope="module")
def kernels() -> Iterator[ModuleType]:
    """The kernels, run by the interpreter; Triton is not among the CPU's packages, and comes with a CUDA torch."""
    with pytest.MonkeyPatch.context() as patch:
        # Looked at when Triton is imported and when a kernel is launched.
        patch.setenv("TRITON_INTERPRET", "1")
        pytest.importorskip("triton", reason="Triton is not installed (CUDA builds of torch carry it)")
        yield importlib.import_module("qwen_megatron.platforms.triton_kernels")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 1), (5, 161), (2, 5000)])
def test_exponentials_sums_and_maxima(kernels: ModuleType, shape: tuple[int, int], dtype: torch.dtype) -> None:
    logits = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 20).to(dtype)
    logits[0, 0] = -torch.inf if shape[1] > 1 else 3.0
    ours, theirs = logits.clone(), logits.clone()
    highest, total = kernels.exponentiate(ours)
    expected_highest, expected_total = exponentiate_in_pieces(theirs)
    assert torch.equal(highest, expected_highest)
    exact = (logits.double() - expected_highest[:, None].double()).exp().sum(dim=1)
    for sums in (total, expected_total):
        torch.testing.assert_close(sums.double(), exact, rtol=1e-6, atol=0)
    # The exponentials of two libraries may round to neighbours; one of them knows numbers below the least normal one.
    torch.testing.assert_close(ours, theirs, rtol=8e-3 if dtype == torch.bfloat16 else 1e-6, atol=1.2e-38)


def test_what_is_no_number_stays_visible(kernels: ModuleType) -> None:
    logits = torch.zeros(2, 70)
    logits[1, 69] = torch.nan
    _, total = kernels.exponentiate(logits)
    assert total[0] == 70
    assert total[1].isnan()


def test_logits_that_are_not_contiguous_are_refused(kernels: ModuleType) -> None:
    with pytest.raises(ValueError, match="contiguous"):
        kernels.exponentiate(torch.zeros(4, 6)[:, :3])


@pytest.mark.parametrize("table_rows", [1, 2])
@pytest.mark.parametrize("heads", [1, 5, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotation_and_its_gradient(kernels: ModuleType, table_rows: int, heads: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    # A slice of the fused projection's output, as queries and keys are: heads lie apart.
    whole = torch.randn(4, 2, heads, 24, generator=generator).to(dtype)
    angles = torch.rand(4, table_rows, 1, 8, generator=generator) * 6
    angles = torch.cat((angles, angles), dim=-1)
    upstream = torch.randn(4, 2, heads, 16, generator=generator).to(dtype)
    results = []
    for rotate in (kernels.Rotate.apply, rotate_in_pieces):
        source = whole.clone().requires_grad_()
        output = rotate(source[..., 4:20], angles.cos(), angles.sin())
        output.backward(upstream)
        results.append((output.detach(), source.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=8e-3 if dtype == torch.bfloat16 else 1e-6, atol=1e-6)


def test_kernels_compile_for_a_gpu(kernels: ModuleType) -> None:
    """The compiler may refuse what the interpreter takes; in a process of its own, where nothing is interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("compile_kernels.py")
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)],
        env=environment | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(set(done.stdout.split())) == ["exponentiate_rows", "rotate_rows"]
