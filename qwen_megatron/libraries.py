"""What is settled before torch and Megatron-Core are imported; imports neither."""

from __future__ import annotations

import contextlib
import gc
import sys
import warnings
from collections.abc import Iterator, MutableMapping
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


@contextlib.contextmanager
def first_imports() -> Iterator[None]:
    """Keeps garbage collection out of the imports of torch and Megatron-Core, and what they bring out of later ones.

    Importing makes a million objects that all stay; looking through them again and again is a quarter of the time.
    """
    if "megatron.core" in sys.modules or not gc.isenabled():
        yield
        return
    # Once torch is there, what has been made with it may be garbage by now, and must not stay.
    may_freeze = "torch" not in sys.modules
    gc.disable()
    try:
        yield
        if may_freeze:
            gc.freeze()
    finally:
        gc.enable()
