"""Keeps the remarks of libraries about things that are as they should be here from hiding ours."""

from __future__ import annotations

import warnings


def silence_libraries() -> None:
    """Ignores warnings raised inside Megatron-Core and torch's collectives; call before they are imported.

    They tell, on every rank, that Transformer Engine and apex are missing and that Megatron-Core uses deprecated names.
    """
    for module in (r"megatron\.", r"torch\.distributed\."):
        for category in (UserWarning, FutureWarning):
            warnings.filterwarnings("ignore", category=category, module=module)
