"""Seeds as functions of names."""

from __future__ import annotations

import torch

from qwen_megatron.parallel.rng import derived_seed


def test_derived_seeds_never_change() -> None:
    """Golden: another value would be another model from the same seed."""
    assert derived_seed("weight", 1234, "decoder.layers.mlp.linear_fc1.weight", 0, 7) == 335879170667232936
    assert derived_seed("step", 1234, 1, 0, 0) == 4584130704256991191


def test_derived_seeds_differ_and_fit_every_generator() -> None:
    seeds = {derived_seed("weight", seed, name, block) for seed in range(20) for name in "abc" for block in range(20)}
    assert len(seeds) == 20 * 3 * 20
    assert all(0 <= seed < 2**62 for seed in seeds)
    assert derived_seed("a", 12) != derived_seed("a1", 2)
    torch.Generator().manual_seed(max(seeds))
