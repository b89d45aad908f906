"""Attention of one token of each text on the CPU against the formula in fp64."""

from __future__ import annotations

import pytest
import torch

from qwen_megatron.platforms import activations
from qwen_megatron.platforms.cached_attention import cached_attention, takes_cached

# Longer than what is taken at once.
LONGEST = 600


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    monkeypatch.setattr(activations, "IS_FAST", True)
    dtype: torch.dtype = request.param
    return dtype


def exact(
    query_bnd: torch.Tensor,
    keys_bgcd: torch.Tensor,
    values_bgcd: torch.Tensor,
    lengths: list[int],
    window: int,
    scale: float,
) -> torch.Tensor:
    repeat = query_bnd.size(1) // keys_bgcd.size(1)
    rows = []
    for query_nd, keys_gcd, values_gcd, length in zip(query_bnd, keys_bgcd, values_bgcd, lengths, strict=True):
        first = max(0, length - window) if window else 0
        keys_nkd, values_nkd = (
            x[:, first:length].double().repeat_interleave(repeat, dim=0) for x in (keys_gcd, values_gcd)
        )
        scores_nk = (keys_nkd @ query_nd.double()[:, :, None])[..., 0] * scale
        rows.append((scores_nk.softmax(dim=-1)[:, None] @ values_nkd)[:, 0])
    return torch.stack(rows)


def tensors(
    rows: int, groups: int, queries: int, size: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A query, and a cache whose rows begin in the middle of a larger one."""
    generator = torch.Generator().manual_seed(rows + groups * 10 + queries * 100 + size)
    query = torch.randn(rows, groups * queries, size, generator=generator)
    keys, values = (torch.randn(rows + 2, groups, LONGEST, size, generator=generator) for _ in range(2))
    return query.to(dtype), keys.to(dtype)[1:-1], values.to(dtype)[1:-1]


@pytest.mark.parametrize("size", [2, 6, 24, 64, 80, 128])
@pytest.mark.parametrize(("groups", "queries"), [(3, 1), (2, 2), (2, 5), (1, 8)])
def test_it_is_the_formula(dtype: torch.dtype, groups: int, queries: int, size: int) -> None:
    query, keys, values = tensors(4, groups, queries, size, dtype)
    lengths = [1, 255, 257, LONGEST]
    for window in (0, 1, 100, 300):
        with torch.inference_mode():
            assert takes_cached(query, keys, values)
            found = cached_attention(query, keys, values, lengths, window=window, scale=0.3)
        assert (found.dtype, found.shape) == (dtype, query.shape)
        tolerance = 1e-5 if dtype == torch.float32 else 2**-7
        expected = exact(query, keys, values, lengths, window, 0.3)
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


def test_scores_far_apart(dtype: torch.dtype) -> None:
    """The largest score comes first, in the middle, or last; the others vanish beside it."""
    for place in (0, 300, LONGEST - 1):
        query, keys, values = tensors(1, 1, 2, 16, dtype)
        keys[0, 0, place] = query[0, 0] * 1000
        with torch.inference_mode():
            found = cached_attention(query, keys, values, [LONGEST])
        torch.testing.assert_close(found[0, 0], values[0, 0, place], rtol=1e-2, atol=1e-2)
        expected = exact(query, keys, values, [LONGEST], 0, 0.25)
        torch.testing.assert_close(found.double(), expected, rtol=1e-2, atol=1e-2)


def test_what_lies_beyond_a_text_has_no_say(dtype: torch.dtype) -> None:
    query, keys, values = tensors(2, 2, 2, 16, dtype)
    with torch.inference_mode():
        found = cached_attention(query, keys, values, [7, 40])
        keys[0, :, 7:], values[0, :, 7:], keys[1, :, 40:], values[1, :, 40:] = (float("nan"),) * 4
        assert torch.equal(cached_attention(query, keys, values, [7, 40]), found)
        keys[0, 0, 3] = float("nan")
        broken = cached_attention(query, keys, values, [7, 40]).isnan()
    assert broken[0, :2].all()
    assert not broken[0, 2:].any()
    assert not broken[1].any()


def test_threads_change_no_bit(dtype: torch.dtype) -> None:
    query, keys, values = tensors(3, 2, 3, 32, dtype)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            with torch.inference_mode():
                found.append(cached_attention(query, keys, values, [5, 300, 599]))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


def test_what_it_is_not_for(dtype: torch.dtype) -> None:
    query, keys, values = tensors(2, 2, 2, 16, dtype)
    assert not takes_cached(query, keys, values), "gradients are on"
    with torch.inference_mode():
        assert not takes_cached(query.double(), keys.double(), values.double())
        assert not takes_cached(query, keys[..., :8], values[..., :8])
        assert not takes_cached(query, keys, values[:, :, ::2])
        for lengths in ([3], [0, 3], [3, LONGEST + 1]):
            with pytest.raises(ValueError, match=f"2 from 1 to {LONGEST} are needed"):
                cached_attention(query, keys, values, lengths)
