"""How layers are spread over pipeline stages."""

from __future__ import annotations


def layers_per_stage(num_layers: int, num_stages: int, first: int | None, last: int | None) -> tuple[int, ...]:
    """Layers of each pipeline stage.

    Args:
        num_layers: Of the whole model.
        num_stages: Stages.
        first: Layers of the first stage, None for as many as the stages between.
        last: Layers of the last stage, likewise.
    """
    given = [count for count in (first, last) if count is not None]
    between = num_stages - len(given)
    share = (num_layers - sum(given)) // between if between else 0
    middle = [share] * between
    return (*([] if first is None else [first]), *middle, *([] if last is None else [last]))
