"""How the C library's allocator treats large blocks that are freed."""

import ctypes
import os

# glibc's numbers for the smallest block that gets pages of its own, for what stays free at the end of the heap, and for
# how many heaps there are; the variables that set the first two, which stand or fall together.
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_ARENA_MAX = -3, -1, -8
MALLOC_VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
LARGEST_KEPT_BYTES = 1 << 30
# For commands that read and write some megabytes at a time: what a thread is about to need again.
KEPT_BYTES = 1 << 26
# Processors for each heap of theirs: their threads allocate few blocks, and large ones.
PROCESSORS_PER_HEAP = 8


def keep_freed_blocks(kept_bytes: int, *, few_heaps: bool = False) -> None:
    """Lets the GNU C library keep large blocks that are freed for the next ones; what the user has set stays.

    Those of more than 32 MiB, and any at the end of a heap, would go back to the system and come anew, filled with
    zeros. Other C libraries have no such setting.

    Args:
        kept_bytes: What is free beyond these at the end of a heap is given back.
        few_heaps: Whether threads share heaps instead of having their own: what one has freed is there for the others,
            which wait for each other to allocate.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and not any(name in os.environ for name in MALLOC_VARIABLES):
        mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, kept_bytes)
        if few_heaps and "MALLOC_ARENA_MAX" not in os.environ:
            mallopt(M_ARENA_MAX, max(1, (os.cpu_count() or 1) // PROCESSORS_PER_HEAP))
