"""Section `data`: the corpora, how they are blended, and what is held out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qwen_megatron.config.setting import about, count


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Section `data` as a user gives it."""

    blend: Any = field(
        default_factory=list,
        metadata=about(
            "Corpora to train on: a list of prefixes (shares by token count), or a mapping of prefix to weight (any "
            "scale). A prefix is the path of a corpus without .bin. Needed to train."
        ),
    )
    eval_samples: int = field(
        default=0,
        metadata=count(
            "Sequences held out for evaluation at the end of the corpora, in all, divided by the blend's shares; never "
            "trained on. 0: no evaluation.",
            minimum=0,
            maximum=1 << 30,
        ),
    )
    mask_documents: bool = field(
        default=False,
        metadata=about(
            "Documents packed into one sequence cannot see each other; torch kernels only. Default: they can, as in "
            "the report."
        ),
    )
    num_workers: int = field(
        default=2,
        metadata=count("Threads of each process that read ahead; 0 reads when asked.", minimum=0, maximum=256),
    )


@dataclass(frozen=True, kw_only=True)
class DataConfig(DataOptions):
    """Section `data`, the blend checked."""

    blend: tuple[str, ...] | Mapping[str, float] = field(
        metadata=about("Prefixes whose shares are their token counts, or prefix -> weight.")
    )
