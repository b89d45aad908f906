"""When each stage of a pipeline works on what, by Megatron-Core's schedules.

1F1B: as many forward passes as stages follow, then a forward and a backward pass in turn, then the backward passes
left. Interleaved, with v pieces of a stage: the same over pieces, each of which takes as many micro-batches as there
are stages before the next piece's turn.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Task:
    """A forward or backward pass of a micro-batch through a piece of a stage.

    Attributes:
        stage, piece, microbatch: Which.
        is_backward: Or forward.
        start, end: In the unit of the times given.
    """

    stage: int
    piece: int
    microbatch: int
    is_backward: bool
    start: float
    end: float


Step = tuple[bool, int, int]


def order_of(stage: int, stages: int, pieces: int, count: int) -> list[Step]:
    """(is_backward, piece, micro-batch) of a stage in its order.

    Args:
        stage: The first is 0.
        stages: Of the pipeline.
        pieces: Of each stage; 1 if nothing is interleaved.
        count: Micro-batches; interleaved, a multiple of the stages.
    """
    forwards = [turn(number, stages, pieces) for number in range(count * pieces)]
    backwards = [(pieces - 1 - piece, microbatch) for piece, microbatch in forwards]
    ahead = stages - 1 - stage if pieces == 1 else 2 * (stages - 1 - stage) + (pieces - 1) * stages
    ahead = min(ahead, len(forwards))
    order: list[Step] = [(False, *item) for item in forwards[:ahead]]
    for number, item in enumerate(forwards[ahead:]):
        order += [(False, *item), (True, *backwards[number])]
    return order + [(True, *item) for item in backwards[len(forwards) - ahead :]]


def turn(number: int, stages: int, pieces: int) -> tuple[int, int]:
    """(piece, micro-batch) of the n-th forward pass of a stage."""
    if pieces == 1:
        return 0, number
    group, place = divmod(number, stages * pieces)
    piece, within = divmod(place, stages)
    return piece, group * stages + within


def timeline(stages: int, pieces: int, count: int, forward: float, backward: float) -> list[Task]:
    """All passes of a step with their times; transfers take none.

    Args:
        stages, pieces, count: As for `order_of`.
        forward, backward: Time of a pass through a piece.
    """
    waiting = [order_of(stage, stages, pieces, count) for stage in range(stages)]
    free = [0.0] * stages
    ends: dict[tuple[bool, int, int, int], float] = {}
    done: list[Task] = []
    while any(waiting):
        before = len(done)
        for stage, steps in enumerate(waiting):
            while steps:
                is_backward, piece, microbatch = steps[0]
                needed = source_of(is_backward, stage, piece, microbatch, stages, pieces)
                if needed is not None and needed not in ends:
                    break
                steps.pop(0)
                start = max(free[stage], 0.0 if needed is None else ends[needed])
                free[stage] = end = start + (backward if is_backward else forward)
                ends[is_backward, stage, piece, microbatch] = end
                done.append(
                    Task(
                        stage=stage,
                        piece=piece,
                        microbatch=microbatch,
                        is_backward=is_backward,
                        start=start,
                        end=end,
                    )
                )
        assert len(done) > before, "every order of these schedules can be followed"
    return done


def source_of(
    is_backward: bool, stage: int, piece: int, microbatch: int, stages: int, pieces: int
) -> tuple[bool, int, int, int] | None:
    """The pass that must have ended before: of the stage before, of the piece before, or the last forward pass."""
    place = piece * stages + stage
    if not is_backward:
        return None if place == 0 else (False, (place - 1) % stages, (place - 1) // stages, microbatch)
    if place == stages * pieces - 1:
        return False, stage, piece, microbatch
    return True, (place + 1) % stages, (place + 1) // stages, microbatch
