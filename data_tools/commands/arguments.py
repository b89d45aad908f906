"""Values of the command line, checked while it is parsed so that a mistake exits with status 2."""

import argparse
import re
from pathlib import Path

from data_tools.errors import RefusedError
from data_tools.io.threads import usable_cores

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


def positive_int(text: str) -> int:
    """A whole number of at least 1."""
    return _ranged_int(text, 1, None)


def non_negative_int(text: str) -> int:
    """A whole number of at least 0."""
    return _ranged_int(text, 0, None)


def seed(text: str) -> int:
    """A whole number of 64 bits."""
    return _ranged_int(text, 0, 2**64 - 1)


def byte_size(text: str) -> int:
    """Bytes: a whole number, optionally with K, M or G (powers of 1024): 65536, 64K, 256M, 256MiB."""
    match = re.fullmatch(r"(\d+)([KMG]?)(?:i?B)?", text.strip(), flags=re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write bytes as 65536, 64K, 256M or 2G")
    return int(match[1]) * _UNITS[match[2].upper()]


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Lets an output pass that is not there yet, or may be replaced.

    Raises:
        RefusedError: it is there.
    """
    if path.exists() and not overwrite:
        raise RefusedError(f"{path}: is there already; choose another output or give --overwrite")


def add_workers_argument(parser: argparse.ArgumentParser) -> None:
    """Processes of this machine, by default as many as cores that this one may use."""
    cores = usable_cores()
    parser.add_argument("--workers", type=positive_int, default=cores, help=f"processes on this machine ({cores})")


def _ranged_int(text: str, smallest: int, largest: int | None) -> int:
    try:
        value = int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from error
    if value < smallest or (largest is not None and value > largest):
        rule = f"at least {smallest}" if largest is None else f"{smallest} to {largest}"
        raise argparse.ArgumentTypeError(f"{value} must be {rule}")
    return value
