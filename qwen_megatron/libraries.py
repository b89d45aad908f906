"""What is settled before torch and Megatron-Core are imported; imports neither."""

from __future__ import annotations

import contextlib
import gc
import sys
import warnings
from collections.abc import Iterator, MutableMapping
from importlib.abc import MetaPathFinder
from pathlib import Path

GPU_DRIVER = Path("/dev/nvidiactl")
# Megatron-Core imports it where it is installed, for timers and an inference engine that are not used here. It takes
# 0.8 seconds of each rank; the run that reports to it imports it then, on one rank.
LEFT_OUT = "wandb"


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


class _NotInstalled(MetaPathFinder):
    """Answers, while Megatron-Core asks, that a package is not there."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == LEFT_OUT:
            raise ModuleNotFoundError(f"{name} is left out of the imports of Megatron-Core", name=name)


@contextlib.contextmanager
def without_reporters() -> Iterator[None]:
    """Keeps Megatron-Core from importing Weights & Biases; whoever imports it afterwards gets it."""
    finder = _NotInstalled()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


@contextlib.contextmanager
def first_imports() -> Iterator[None]:
    """Imports of torch and Megatron-Core inside are not searched for garbage and leave out what is not used.

    Importing makes a million objects that all stay; looking through them again and again is a quarter of the time.
    What is imported is kept out of later collections.
    """
    if "megatron.core" in sys.modules or not gc.isenabled():
        yield
        return
    # Once torch is there, what has been made with it may be garbage by now, and must not stay.
    may_freeze = "torch" not in sys.modules
    gc.disable()
    try:
        with without_reporters():
            yield
        if may_freeze:
            gc.freeze()
    finally:
        gc.enable()
