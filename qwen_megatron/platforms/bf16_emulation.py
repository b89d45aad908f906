"""Matrix products of bf16 tensors on processors that cannot multiply bf16: in fp32, rounded once.

Without AVX-512 or a bf16 unit oneDNN leaves such products to loops that reach a tenth to a hundredth of the speed of
fp32. A conversion costs a memory pass, and the result is what a bf16 unit gives: fp32 sums of exact products.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

# Numbers of an operand that are converted at once: 4 MiB in fp32, which stay in the last cache.
BLOCK = 2**20


def multiplies_bf16() -> bool:
    """Whether torch has fast bf16 products on this processor."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class Bf16Emulation(TorchDispatchMode):
    """Within it, products of bf16 matrices are taken in fp32; every other operation stays as it is."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        product = PRODUCTS.get(func)
        # The second argument is a factor in all of them; the first may be a bias or a gradient.
        if product is None or args[1].dtype != torch.bfloat16:
            return func(*args, **(kwargs or {}))
        return product(*args, **(kwargs or {}))


def mm(left_mk: torch.Tensor, right_kn: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """[m, n] bf16 product, in blocks of the largest of the three dimensions."""
    (m, k), n = left_mk.shape, right_kn.size(1)
    if out is None:
        out = left_mk.new_empty(m, n)
    if k >= max(m, n):
        step = block_size(max(m, n))
        total = torch.zeros(m, n)
        for start in range(0, k, step):
            total.addmm_(left_mk[:, start : start + step].float(), right_kn[start : start + step].float())
        return out.copy_(total)
    if n >= m:
        step, left = block_size(k), left_mk.float()
        for start in range(0, n, step):
            out[:, start : start + step] = torch.mm(left, right_kn[:, start : start + step].float())
        return out
    step, right = block_size(k), right_kn.float()
    for start in range(0, m, step):
        out[start : start + step] = torch.mm(left_mk[start : start + step].float(), right)
    return out


def block_size(other: int) -> int:
    """How much of a dimension is converted at once, beside another one of size `other`."""
    return max(1, BLOCK // max(1, other))


def addmm(
    bias: torch.Tensor, left_mk: torch.Tensor, right_kn: torch.Tensor, *, beta: float = 1, alpha: float = 1
) -> torch.Tensor:
    """beta * bias + alpha * left right, rounded once."""
    return torch.addmm(bias.float(), left_mk.float(), right_kn.float(), beta=beta, alpha=alpha).to(left_mk.dtype)


def bmm(left_bmk: torch.Tensor, right_bkn: torch.Tensor) -> torch.Tensor:
    """[b, m, n] bf16 products."""
    return torch.bmm(left_bmk.float(), right_bkn.float()).to(left_bmk.dtype)


def attention(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """[b, heads, s, d] bf16 attention and its fp32 logarithms of sums, as of torch's fused kernel for the CPU."""
    output, log_sums = aten._scaled_dot_product_flash_attention_for_cpu(*map(in_fp32, args), **values_in_fp32(kwargs))
    return output.bfloat16(), log_sums


def attention_backward(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
    """[b, heads, s, d] bf16 gradients of query, key and value."""
    backward = aten._scaled_dot_product_flash_attention_for_cpu_backward
    return tuple(gradient.bfloat16() for gradient in backward(*map(in_fp32, args), **values_in_fp32(kwargs)))


def in_fp32(value: Any) -> Any:
    """A bf16 tensor as fp32; everything else as it is."""
    return value.float() if isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16 else value


def values_in_fp32(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments with bf16 tensors as fp32."""
    return {name: in_fp32(value) for name, value in kwargs.items()}


PRODUCTS: dict[Any, Callable[..., Any]] = {
    aten.mm.default: mm,
    aten.mm.out: mm,
    aten.addmm.default: addmm,
    aten.bmm.default: bmm,
    aten._scaled_dot_product_flash_attention_for_cpu.default: attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default: attention_backward,
}
