"""Work of several threads in a fixed order: for what lets go of the interpreter's lock (hashes, kernels, reads)."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def map_in_threads(function: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[Result]:
    """Results of ``function`` in the order of ``items``, several of which are worked on at once.

    The first item, in their order, whose call raises ends the iteration with its exception; so does the caller who
    stops early. Calls that have begun are waited for, the others are not made.

    Args:
        function: called in threads.
        items: what it is called with.
        workers: threads at most.
    """
    if not items:
        return
    # Not needed by what only counts cores, such as --help.
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(min(workers, len(items)))
    try:
        for future in [pool.submit(function, item) for item in items]:
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)
