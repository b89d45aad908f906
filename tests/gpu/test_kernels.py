"""Single kernels on a GPU against plain torch in fp64, and what a step waits for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from qwen_megatron.platforms.norms import sum_of_squares
from qwen_megatron.platforms.packed_attention import packed_attention, varlen_kernel
from qwen_megatron.platforms.rotation import rotate, rotate_in_pieces
from qwen_megatron.platforms.rows import add_rows
from qwen_megatron.platforms.vocabulary import add_weight_gradient, block_tokens, exponentiate

pytestmark = pytest.mark.gpu
VOCAB = 152_064


@pytest.fixture
def device() -> Iterator[torch.device]:
    torch.manual_seed(0)
    with torch.device("cuda"):
        yield torch.device("cuda", 0)


def test_exponentials_of_a_large_vocabulary(device: torch.device) -> None:
    logits = (torch.randn(64, VOCAB) * 5).bfloat16()
    exact = logits.double()
    highest, total = exponentiate(logits)
    assert torch.equal(highest.double(), exact.amax(dim=1))
    exact = (exact - exact.amax(dim=1, keepdim=True)).exp()
    torch.testing.assert_close(total.double(), exact.sum(dim=1), rtol=1e-5, atol=0)
    torch.testing.assert_close(logits.double(), exact, rtol=8e-3, atol=1e-30)


def test_weight_gradients_are_added_in_fp32(device: torch.device) -> None:
    residual, hidden = torch.randn(512, 3000).bfloat16(), torch.randn(512, 256).bfloat16()
    grad = torch.randn(3000, 256)
    expected = grad.double() + residual.double().t() @ hidden.double()
    add_weight_gradient(grad, residual, hidden)
    torch.testing.assert_close(grad.double(), expected, rtol=1e-4, atol=1e-3)


def test_blocks_follow_the_memory_of_the_machine(device: torch.device) -> None:
    tokens = block_tokens(torch.empty(VOCAB, 8, dtype=torch.bfloat16))
    assert 512 <= tokens <= 8192
    assert tokens & (tokens - 1) == 0


def test_rotation_and_its_gradient(device: torch.device) -> None:
    angles = torch.rand(33, 1, 1, 64) * 6
    angles = torch.cat((angles, angles), dim=-1)
    results = []
    for function in (rotate, rotate_in_pieces):
        torch.manual_seed(1)
        x = torch.randn(33, 2, 5, 128).bfloat16().requires_grad_()
        y = function(x, angles.cos(), angles.sin())
        y.backward(torch.ones_like(y))
        results.append((y.detach(), x.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=8e-3, atol=1e-2)


def test_rows_add_up_and_repeat(device: torch.device) -> None:
    numbers, rows = torch.randint(50, (4000,)), torch.randn(4000, 64)
    sums = [torch.zeros(60, 64) for _ in range(3)]
    for one in sums:
        add_rows(one, numbers, rows)
    assert torch.equal(sums[0], sums[1])
    assert torch.equal(sums[0], sums[2])
    exact = torch.zeros(60, 64, dtype=torch.float64).index_add_(0, numbers, rows.double())
    torch.testing.assert_close(sums[0].double(), exact, rtol=0, atol=1e-4)


def test_squares_of_large_gradients(device: torch.device) -> None:
    gradients = [torch.randn(9_700_001), torch.zeros(0), torch.randn(7)]
    exact = sum(float(one.double().square().sum()) for one in gradients)
    assert sum_of_squares(gradients).item() == pytest.approx(exact, rel=1e-5)


def test_packed_documents_are_attended_apart(device: torch.device) -> None:
    if varlen_kernel() is None:
        pytest.skip("this torch has no varlen kernel with these arguments; the torch kernels take one call a document")
    lengths = [40, 3, 85]
    query, key, value = (torch.randn(128, heads, 64).bfloat16() for heads in (4, 2, 2))
    bounds = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
    ours = packed_attention(query, key, value, bounds, max(lengths), None)
    start = 0
    for length in lengths:
        part = slice(start, start + length)
        heads = [x[part].transpose(0, 1)[None].float() for x in (query, key, value)]
        alone = torch.nn.functional.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)
        torch.testing.assert_close(ours[part].float(), alone[0].transpose(0, 1), rtol=0, atol=2e-2)
        start += length
