"""The option of commands that read weights."""

from __future__ import annotations

import argparse


def add_allow_nonfinite(parser: argparse.ArgumentParser) -> None:
    """Adds it."""
    parser.add_argument(
        "--allow-nonfinite",
        action="store_true",
        help="take weights that hold NaN or infinity too, to look into them",
    )
