"""Rotary position embedding and the two ways Qwen stretches it at evaluation.

Legend: s sequence, b micro-batch, n heads, d head size.
Source: Su et al. 2021 (arXiv 2104.09864); dynamic NTK and LogN scaling as in the Qwen Technical Report, section 3.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class RotarySettings:
    """What fixes the angles.

    Attributes:
        head_size: Channels per head, all of them rotated.
        base: Base of the geometric series of wavelengths.
        native_length: Context the model was trained on; longer evaluation input is stretched.
        use_dynamic_ntk: Enlarge the base for inputs longer than `native_length` (evaluation only).
        use_logn_attn: Scale queries beyond `native_length` (evaluation only).
        ntk_length: Tokens for which the base is stretched once and for all, whatever the length of an input
            (NTK-aware interpolation; evaluation only); 0 where it is not.
    """

    head_size: int
    base: float
    native_length: int
    use_dynamic_ntk: bool = False
    use_logn_attn: bool = False
    ntk_length: int = 0


def evaluation_base(settings: RotarySettings, length: int) -> float:
    """Base for an input of `length` tokens at evaluation."""
    if settings.ntk_length:
        return dynamic_ntk_base(settings, settings.ntk_length)
    return dynamic_ntk_base(settings, length) if settings.use_dynamic_ntk else settings.base


def dynamic_ntk_base(settings: RotarySettings, length: int) -> float:
    """Base for an input of `length` tokens: base * alpha^(d/(d-2)).

    alpha = 2^ceil(log2(length / native) + 1) - 1, at least 1; d is the head size.
    """
    if length <= settings.native_length:
        return settings.base
    alpha = max(2 ** math.ceil(math.log2(length / settings.native_length) + 1) - 1, 1)
    return settings.base * alpha ** (settings.head_size / (settings.head_size - 2))


def rotary_table(base: float, head_size: int, length: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of all angles, fp32 [s, 1, 1, d]; frequencies stay in fp32 whatever the model's precision."""
    # Made for the next power of two: generation asks for one token more each time.
    cos, sin = kept_table(base, head_size, 1 << (length - 1).bit_length(), device)
    return cos[:length], sin[:length]


@functools.lru_cache(maxsize=16)
def kept_table(base: float, head_size: int, length: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Makes the tables of `rotary_table` once for each length."""
    # The tables are kept: made under inference mode they could not serve training later.
    with torch.inference_mode(False):
        exponents = torch.arange(0, head_size, 2, dtype=torch.float32, device=device) / head_size
        inverse_frequencies = 1.0 / (base**exponents)
        angles = torch.outer(torch.arange(length, dtype=torch.float32, device=device), inverse_frequencies)
        angles = torch.cat((angles, angles), dim=-1)[:, None, None, :]
        return angles.cos(), angles.sin()


def logn_scale(settings: RotarySettings, length: int, device: torch.device) -> torch.Tensor:
    """Factor of each query, fp32 [s, 1, 1, 1].

    log(i) / log(native) at 1-based position i beyond the native length, 1 up to it.
    """
    positions = torch.arange(1, length + 1, dtype=torch.float32, device=device)
    scale = torch.log(positions) / math.log(settings.native_length)
    return torch.where(positions > settings.native_length, scale, 1.0)[:, None, None, None]
