"""Arguments that several commands take: YAML files and `section.key=value` overrides; a model's name."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Adds the positional arguments."""
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="SETTINGS",
        help="configuration files (paths, or recipe:NAME; later ones win), and overrides that win over them (values in "
        "YAML); all keys: docs/configuration.md",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds the choice of a model to commands that read one out of a checkpoint."""
    parser.add_argument("--model", metavar="NAME", help="which model, where a checkpoint holds several")


def split_settings(settings: Sequence[str]) -> tuple[list[str], list[str]]:
    """The configuration files and the overrides."""
    return [text for text in settings if "=" not in text], [text for text in settings if "=" in text]
