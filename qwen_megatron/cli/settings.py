"""Arguments that several commands take: YAML files and `section.key=value` overrides; a model's name."""

from __future__ import annotations

import argparse
import difflib
import glob
import os
from collections.abc import Sequence

from data_tools.settings.words import join_or
from qwen_megatron.config.schema import TYPES


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Adds the positional arguments."""
    settings = parser.add_argument(
        "settings",
        nargs="*",
        metavar="SETTINGS",
        help="configuration files (paths, or recipe:NAME; later ones win), and overrides that win over them (values in "
        "YAML); all keys: docs/configuration.md",
    )
    # What the package argcomplete asks for.
    settings.completer = completions  # type: ignore[attr-defined]


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds the choice of a model to commands that read one out of a checkpoint."""
    parser.add_argument("--model", metavar="NAME", help="which model, where a checkpoint holds several")


def completions(prefix: str, **unused: object) -> list[str]:
    """What may be meant by the beginning of a setting or of a file's name, for a shell."""
    keys = [f"{key}=" for key in TYPES if key.startswith(prefix)]
    files = sorted(glob.glob(glob.escape(prefix) + "*"))
    return keys or [f"{path}/" if os.path.isdir(path) else path for path in files]


def setting_meant(option: str, arguments: Sequence[str]) -> str | None:
    """What to type instead of an option that is the name of a setting: `--lr 1e-3` is `optimizer.lr=1e-3`.

    Args:
        option: As given, perhaps with its value.
        arguments: All of the command line.
    Returns:
        A sentence; None if it is like no setting.
    """
    if not option.startswith("--"):
        return None
    name, has_value, value = option[2:].partition("=")
    name = name.replace("-", "_")
    if not has_value and option in arguments:
        following = arguments[arguments.index(option) + 1 :][:1]
        value = following[0] if following and not following[0].startswith("--") else "VALUE"
    keys = [key for key in TYPES if name in (key, key.partition(".")[2])]
    if not keys:
        last = {key.partition(".")[2]: key for key in TYPES}
        keys = [last[found] for found in difflib.get_close_matches(name[:100], last, n=1, cutoff=0.75)]
    words = join_or(tuple(f"{key}={value}" for key in keys)) if keys else ""
    return f"settings have no dashes: did you mean {words}?" if keys else None
