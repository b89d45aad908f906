"""`qwen-megatron recipes`: the configurations that come with the package."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from qwen_megatron.config.recipes import PREFIX, recipes, title
from qwen_megatron.errors import ConfigError

EPILOG = """examples:
  qwen-megatron recipes
  qwen-megatron show-config recipe:qwen-7b parallel.world_size=64
  qwen-megatron recipes --copy my-recipes
"""


def add_parser(subparsers: Any) -> None:
    """Registers the command."""
    parser = subparsers.add_parser(
        "recipes",
        help="list the configurations that come with the package, or copy them",
        description=f"Lists the recipes. {PREFIX}NAME stands wherever a configuration file does.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--copy", type=Path, metavar="DIR", help="copy the files there, to be changed")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Lists or copies.

    Raises:
        ConfigError: if a file of that name is there already; nothing is copied then.
    """
    found = recipes()
    width = max(len(name) for name in found) + len(PREFIX)
    if args.copy is None:
        for name, path in found.items():
            print(f"{PREFIX + name:<{width}}  {title(path)}")
        return 0
    present = [args.copy / path.name for path in found.values() if (args.copy / path.name).exists()]
    if present:
        raise ConfigError(f"--copy {args.copy}: {present[0]} is there already; name another folder")
    args.copy.mkdir(parents=True, exist_ok=True)
    for path in found.values():
        print(shutil.copyfile(path, args.copy / path.name))
    return 0
