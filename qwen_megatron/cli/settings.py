"""Arguments that several commands take: an optional YAML file and `section.key=value` overrides; a model's name."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from qwen_megatron.errors import ConfigError


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Adds the positional arguments."""
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="SETTINGS",
        help="a configuration file, and overrides that win over it (values in YAML); all keys: docs/configuration.md",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds the choice of a model to commands that read one out of a checkpoint."""
    parser.add_argument("--model", metavar="NAME", help="which model, where a checkpoint holds several")


def split_settings(settings: Sequence[str]) -> tuple[str | None, list[str]]:
    """The file, if one is named, and the overrides.

    Raises:
        ConfigError: more than one file is named.
    """
    files = [text for text in settings if "=" not in text]
    if len(files) > 1:
        raise ConfigError(
            f"{' '.join(files)}: only one configuration file can be given; an override is SECTION.KEY=VALUE"
        )
    return (files[0] if files else None), [text for text in settings if "=" in text]
