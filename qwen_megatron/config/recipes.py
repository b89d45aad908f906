"""Recipes of the package, and how a configuration file is named: by its path, or as `recipe:NAME`."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

from data_tools.settings.words import closest
from data_tools.settings.yaml_text import YamlError

PREFIX = "recipe:"


def recipes() -> dict[str, Path]:
    """The files of all recipes by name, small models first, then by name."""
    folder = Path(str(importlib.resources.files("qwen_megatron.recipes")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"), key=lambda path: (size_of(path.stem), path.stem))}


def size_of(name: str) -> float:
    """Billions of parameters in a recipe's name; 0 for those that name none."""
    digits = name.rpartition("-")[2].removesuffix("b")
    return float(digits) if digits.replace(".", "").isdigit() else 0.0


def title(path: Path) -> str:
    """What a recipe is: the first sentence of the comment it begins with."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").partition(". ")[0].strip().removesuffix(".")


def file_of(name: str | Path) -> Path:
    """The file that a configuration is read from.

    Args:
        name: Its path, or `recipe:NAME`.
    Raises:
        YamlError: there is no such recipe.
    """
    if not str(name).startswith(PREFIX):
        return Path(name)
    known, wanted = recipes(), str(name).removeprefix(PREFIX)
    if wanted not in known:
        raise YamlError(f"there is no such recipe; the closest one is {PREFIX}{closest(wanted, tuple(known))}")
    return known[wanted]
