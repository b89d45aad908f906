"""The memory that a process gives back, and what it keeps."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from data_tools.allocator import MALLOC_VARIABLES


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such setting")
@pytest.mark.parametrize(("variables", "is_kept"), [({}, True), ({"MALLOC_MMAP_THRESHOLD_": "131072"}, False)])
def test_freed_blocks_are_kept_unless_somebody_has_said_which(variables: dict[str, str], is_kept: bool) -> None:
    """A second block of 64 MiB comes without new pages."""
    code = (
        "import resource\n"
        "from data_tools.allocator import keep_freed_blocks\n"
        "keep_freed_blocks(1 << 27)\n"
        "bytearray(64 << 20)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "bytearray(64 << 20)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    plain = {name: value for name, value in os.environ.items() if name not in MALLOC_VARIABLES}
    found = subprocess.run(
        [sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True, env={**plain, **variables}
    )
    pages = (64 << 20) // os.sysconf("SC_PAGESIZE")
    assert (int(found.stdout) < pages // 100) == is_kept
