"""Versions and settings that bits depend on, for whoever asks what a run was made with.

What a process has imported stays as it is, so packages and source are looked up once.
"""

from __future__ import annotations

import platform as python_platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch


def environment() -> dict[str, Any]:
    """Versions and settings that bits depend on."""
    packages = ("torch", "megatron-core", "numpy", "qwen-megatron", "transformer-engine")
    return {
        "python": python_platform.python_version(),
        "packages": {name: version for name in packages if (version := installed_version(name))},
        "commit": source_commit(),
        "threads": torch.get_num_threads(),
        "machine": python_platform.machine(),
    }


@cache
def installed_version(package: str) -> str | None:
    """Version of an installed package; None if it is not there."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@cache
def source_commit() -> str | None:
    """Commit of the source tree this runs from, with "-dirty" if files differ; None outside of a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
