"""What arithmetic needs to know of a job: the head of its model, and how much a sample is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class JobShape:
    """What a kind of job makes of a model and of samples.

    Attributes:
        has_scalar_head: The model has one number a token in place of an output layer over the vocabulary.
        rows_per_sample: Sequences of a sample: two for a pair.
        has_ppo_models: A value model is trained beside it, a reference and a reward model are asked.
    """

    has_scalar_head: bool = False
    rows_per_sample: int = 1
    has_ppo_models: bool = False


LANGUAGE_MODELLING = JobShape()
