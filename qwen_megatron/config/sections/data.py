"""Section `data`: the corpora, how they are blended, and what is held out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from annotated_types import Interval

from data_tools.settings.records import CheckedLater, record


@record
class DataConfig:
    """Section `data`."""

    blend: Annotated[tuple[str, ...] | Mapping[str, float], CheckedLater()] = ()
    """Corpora to train on: a list of prefixes (shares by token count), or a mapping of prefix to weight (any
    scale). A prefix is the path of a corpus without .bin. Needed to train."""
    eval_samples: Annotated[int, Interval(ge=0, le=1 << 30)] = 0
    """Sequences (`sft`: dialogues, `reward`: pairs) held out for evaluation at the end of the corpora, in all,
    divided by the blend's shares; never trained on. 0: no evaluation."""
    eval_blend: Annotated[tuple[str, ...] | Mapping[str, tuple[str, ...]], CheckedLater()] = ()
    """Corpora to evaluate on besides, which are not trained on: a mapping of name to prefix or list of prefixes, or a
    list of prefixes, named by the last part of each. Every name has its own loss."""
    eval_blend_samples: Annotated[int, Interval(ge=0, le=1 << 30)] = 0
    """Sequences, dialogues or pairs of each name in eval_blend, evenly spread over its corpora; 0: all of them."""
    mask_documents: bool = False
    """Documents packed into one sequence cannot see each other; under context parallelism with torch's kernels only.
    Default: they can, as in the report."""
    num_workers: Annotated[int, Interval(ge=0, le=256)] = 2
    """Threads of each process that read ahead; 0 reads when asked."""
