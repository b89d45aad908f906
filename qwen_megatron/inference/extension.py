"""Reading beyond the native length: what of it is switched on in a model, at evaluation and generation.

Source: Qwen Technical Report (arXiv 2309.16609), section 2.3.2 and Table 3: NTK-aware and dynamic NTK interpolation,
LogN scaling, and windows that are shorter in lower layers. The paper does not give the windows' sizes; ours grow
evenly from half of the native length in the lowest layer to all of it in the highest.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from qwen_megatron.errors import ConfigError
from qwen_megatron.model.attention import QwenCoreAttention
from qwen_megatron.model.qwen_model import QwenModel

CHECKPOINT = "checkpoint"
# As in the paper's Table 3; parts may be joined in other ways too.
CHOICES = (
    CHECKPOINT,
    "none",
    "ntk",
    "dynamic-ntk",
    "logn",
    "dynamic-ntk+logn",
    "dynamic-ntk+logn+window",
)
PARTS = ("ntk", "dynamic-ntk", "logn", "window")


@dataclass(frozen=True, kw_only=True)
class Extension:
    """What is done for inputs beyond the native length.

    Attributes:
        ntk: `fixed`: the rotary base is stretched for the longest input, for short ones too; `dynamic`: for each by its
            own length; `none`.
        logn: Queries beyond the native length are scaled.
        window: Layers see windows.
    """

    ntk: Literal["none", "fixed", "dynamic"] = "none"
    logn: bool = False
    window: bool = False


def parse_extension(text: str) -> Extension | None:
    """An extension by name, such as `dynamic-ntk+logn`; None for `checkpoint`, as its configuration says.

    Raises:
        ConfigError: if there is no such.
    """
    if text == CHECKPOINT:
        return None
    parts = text.split("+")
    both = "ntk" in parts and "dynamic-ntk" in parts
    if text != "none" and (both or len(set(parts)) < len(parts) or not set(parts) <= set(PARTS)):
        raise ConfigError(f"--extend={text}: must be one of {', '.join(CHOICES)}, or other parts joined by +")
    return Extension(
        ntk="dynamic" if "dynamic-ntk" in parts else "fixed" if "ntk" in parts else "none",
        logn="logn" in parts,
        window="window" in parts,
    )


def parse_windows(text: str, num_layers: int) -> tuple[int, ...] | None:
    """Tokens that each layer sees, 0 for all; None for `checkpoint`.

    Args:
        text: `checkpoint`, `none`, one size for all layers, `LOWEST:HIGHEST` for sizes between, or one for each layer.
        num_layers: Of the model.
    Raises:
        ConfigError: if it is nothing of this.
    """
    if text == CHECKPOINT:
        return None
    if text == "none":
        return (0,) * num_layers
    numbers = text.replace(":", ",").split(",")
    if not all(number.isascii() and number.isdigit() and len(number) <= 9 for number in numbers):
        raise ConfigError(
            f"--windows={text}: must be {CHECKPOINT}, none, a number of tokens, LOWEST:HIGHEST, or one number for each "
            "layer, joined by commas"
        )
    sizes = [int(number) for number in numbers]
    if ":" in text:
        if len(sizes) != 2 or "," in text or not 0 < sizes[0] <= sizes[1]:
            raise ConfigError(f"--windows={text}: LOWEST:HIGHEST must be two numbers, the first above 0 and no larger")
        return rising(sizes[0], sizes[1], num_layers)
    if len(sizes) == 1:
        return tuple(sizes) * num_layers
    if len(sizes) != num_layers:
        raise ConfigError(
            f"--windows={text}: has {len(sizes)} numbers, the model {num_layers} layers; give one for each"
        )
    return tuple(sizes)


def rising(lowest: int, highest: int, num_layers: int) -> tuple[int, ...]:
    """Sizes that grow evenly from the lowest layer to the highest."""
    return tuple(round(lowest + (highest - lowest) * layer / max(1, num_layers - 1)) for layer in range(num_layers))


def extend(
    model: QwenModel,
    extension: Extension | None,
    *,
    longest: int,
    native_length: int | None = None,
    windows: tuple[int, ...] | None = None,
) -> None:
    """Sets how a model reads at evaluation; up to the native length as before, but for `fixed` and windows.

    Args:
        model: Any part of it.
        extension: None for what its configuration says.
        longest: Tokens of the longest input, for `fixed`.
        native_length: Tokens of the context it was trained on, where its configuration says otherwise.
        windows: Tokens that each layer sees, 0 for all; None where `extension` decides.
    Raises:
        ConfigError: if the attention kernel would ignore windows.
    """
    for core in (module for module in model.modules() if isinstance(module, QwenCoreAttention)):
        native = native_length or core.rotary.native_length
        core.evaluated = core.rotary
        if extension is not None:
            core.evaluated = dataclasses.replace(
                core.rotary,
                native_length=native,
                use_dynamic_ntk=extension.ntk == "dynamic",
                ntk_length=longest if extension.ntk == "fixed" else 0,
                use_logn_attn=extension.logn,
            )
        sizes = windows
        if sizes is None and extension is not None and extension.window:
            sizes = rising(max(1, native // 2), native, model.config.num_layers)
        core.window = sizes[core.layer_number - 1] if sizes else 0
        if core.window and "windows" not in core.takes:
            raise ConfigError(f"windows: {type(core.kernel).__name__} would ignore them; use the torch kernels")
