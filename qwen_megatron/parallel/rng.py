"""Seeds as functions of names: no generator has a state that would have to be saved."""

from __future__ import annotations

import hashlib

from megatron.core.tensor_parallel import random as megatron_random

from qwen_megatron.parallel.groups import Groups


def derived_seed(*parts: object) -> int:
    """A 62-bit seed that is a function of all parts, the same on every machine and Python version."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 2


def start_tracker(groups: Groups, *, for_graphs: bool = False) -> None:
    """Gives Megatron-Core's tracker its generators, if it has none: its layers enter them while they are built.

    Args:
        groups: Layout.
        for_graphs: Generators that CUDA graphs may hold, Transformer Engine's; others are given up for them.
    """
    if for_graphs or not megatron_random.get_cuda_rng_tracker().is_initialized():
        megatron_random.model_parallel_cuda_manual_seed(
            0,
            te_rng_tracker=for_graphs,
            tp_rank=groups.tp.rank(),
            ep_rank=0,
            etp_rank=0,
            force_reset_rng=for_graphs,
        )


def seed_tracker(seed: int) -> None:
    """Sets the generator that layers enter for random numbers which differ between tensor-parallel ranks."""
    tracker = megatron_random.get_cuda_rng_tracker()
    tracker.reset()
    tracker.add(megatron_random._MODEL_PARALLEL_RNG_TRACKER_NAME, seed)
