"""The pipeline's timeline, against the formula for its bubble and against the order of its passes."""

from __future__ import annotations

from itertools import pairwise

import pytest

from qwen_megatron.planning.schedule import order_of, timeline


@pytest.mark.parametrize(("stages", "pieces", "count"), [(4, 1, 8), (4, 1, 2), (2, 3, 4), (4, 2, 8), (8, 5, 16)])
def test_a_step_is_as_long_as_the_formula_says(stages: int, pieces: int, count: int) -> None:
    tasks = timeline(stages, pieces, count, 1.0 / pieces, 2.0 / pieces)
    assert len(tasks) == 2 * stages * pieces * count
    # Work of 3 for each micro-batch, and the bubble of (stages - 1) micro-batches, divided by the pieces.
    assert max(task.end for task in tasks) == pytest.approx(3 * (count + (stages - 1) / pieces))


@pytest.mark.parametrize(("stages", "pieces", "count"), [(4, 1, 8), (4, 2, 8)])
def test_a_stage_does_one_thing_at_a_time_and_everything_once(stages: int, pieces: int, count: int) -> None:
    tasks = timeline(stages, pieces, count, 1.0, 2.0)
    for stage in range(stages):
        own = sorted((task for task in tasks if task.stage == stage), key=lambda task: task.start)
        assert all(before.end <= after.start for before, after in pairwise(own))
        steps = {(task.is_backward, task.piece, task.microbatch) for task in own}
        assert len(steps) == len(own) == 2 * pieces * count
        assert steps == set(order_of(stage, stages, pieces, count))


def test_as_many_are_in_flight_as_memory_is_planned_for() -> None:
    for stages, pieces in ((4, 1), (4, 2)):
        for stage in range(stages):
            alive = most = 0
            for is_backward, _, _ in order_of(stage, stages, pieces, 8):
                alive += -1 if is_backward else 1
                most = max(most, alive)
            after = stages - 1 - stage
            assert most == (after + 1 if pieces == 1 else 2 * after + (pieces - 1) * stages + 1)
