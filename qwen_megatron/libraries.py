"""What is settled before torch and Megatron-Core are imported; imports neither."""

from __future__ import annotations

import warnings
from collections.abc import MutableMapping
from pathlib import Path

GPU_DRIVER = Path("/dev/nvidiactl")


def silence_libraries() -> None:
    """Ignores warnings raised inside Megatron-Core and torch's collectives; call before they are imported.

    They tell, on every rank, that Transformer Engine and apex are missing and that Megatron-Core uses deprecated names.
    """
    for module in (r"megatron\.", r"torch\.distributed\."):
        for category in (UserWarning, FutureWarning):
            warnings.filterwarnings("ignore", category=category, module=module)


def without_compiler(environment: MutableMapping[str, str]) -> None:
    """Where there is no GPU, keeps torch.compile from loading its compiler.

    Megatron-Core hands it functions while it is imported, and Inductor alone takes as long to import as all of torch.
    On the CPU none of these functions is used. A value that the user has set stays.
    """
    if not GPU_DRIVER.exists():
        environment.setdefault("TORCHDYNAMO_DISABLE", "1")
