"""What goes wrong on one rank goes wrong on all: nobody is left waiting for a rank that has given up."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from qwen_megatron.errors import CheckpointError
from qwen_megatron.parallel.objects import TEXT_OR_NONE, all_gather, anywhere


def raise_together(problem: str | None) -> None:
    """Tells all ranks what went wrong on any of them; collective where a job is running.

    While all is well one number is exchanged, however many ranks there are.

    Raises:
        CheckpointError: on every rank, with the problems of all.
    """
    if not anywhere(problem is not None):
        return
    found = sorted({text for text in all_gather(problem, TEXT_OR_NONE) if text})
    if found:
        raise CheckpointError("\n".join(found))


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """Around work of one rank or of each, without collectives inside; the end is collective.

    Raises:
        CheckpointError: on every rank, if a CheckpointError or an OSError came up on any.
    """
    problem = None
    try:
        yield
    except (CheckpointError, OSError) as error:
        problem = str(error)
    raise_together(problem)
