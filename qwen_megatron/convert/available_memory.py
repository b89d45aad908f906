"""How much memory this process may still take."""

from __future__ import annotations

from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")


def available_bytes() -> int:
    """Memory that can be taken without swapping, at most what the container's limit leaves."""
    available: int = psutil.virtual_memory().available
    limit, used = (cgroup_bytes(name) for name in ("memory.max", "memory.current"))
    if limit is None or used is None:
        return available
    return min(available, max(0, limit - used))


def cgroup_bytes(name: str) -> int | None:
    """A number of this process's control group; None where there is none, or no limit."""
    try:
        return int((CGROUP / name).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
