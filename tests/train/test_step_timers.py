"""What a rank is doing: names, exclusive times, Megatron-Core's timers."""

from __future__ import annotations

import functools
import threading
from contextlib import AbstractContextManager, nullcontext

import pytest

from qwen_megatron.platforms.comm_timer import comm_timer, report_comm_to
from qwen_megatron.train.objective import NextTokenLoss
from qwen_megatron.train.step import forward_backward, means
from qwen_megatron.train.step_timers import STEP_PHASES, StepTimers
from tests.support.ranks import RankPool
from tests.support.trainables import (
    held_out_loss,
    random_batches,
    take_step,
    tiny_built,
    tiny_config,
    tiny_trainable,
)


class Clock:
    """Shows what it is set to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_time_counts_for_the_innermost_phase_only() -> None:
    clock = Clock()
    timers = StepTimers(clock)
    clock.now += 1
    with timers.enter("optimizer"):
        clock.now += 2
        with timers.enter("communication"):
            clock.now += 4
            assert (timers.current, timers.since) == ("communication", 103.0)
        assert (timers.current, timers.since) == ("optimizer", 107.0)
        clock.now += 8
    assert timers.take() == {"other": 1.0, "optimizer": 10.0, "communication": 4.0}
    clock.now += 16
    assert timers.take() == {"other": 16.0}, "each second is given out once"


def test_a_phase_can_be_taken_while_it_runs() -> None:
    clock = Clock()
    timers = StepTimers(clock)
    with timers.enter("save"):
        clock.now += 3
        assert timers.take() == {"other": 0.0, "save": 3.0}
        clock.now += 5
    assert timers.take() == {"save": 5.0, "other": 0.0}


@pytest.mark.parametrize(
    ("timer", "phase"),
    [
        ("forward-compute", "forward"),
        ("backward-compute", "backward"),
        ("forward-recv", "communication"),
        ("backward-send-forward-recv", "communication"),
        ("all-grads-sync", "communication"),
        ("params-all-gather", "communication"),
        ("forward-backward", "communication"),
        ("optimizer-inner-step", "optimizer"),
    ],
)
def test_megatron_timers_are_phases(timer: str, phase: str) -> None:
    timers = StepTimers()
    timers(timer, log_level=2).start(barrier=True)
    assert timers.current == phase
    timers(timer).stop()
    assert timers.current == "other"


def test_the_phase_of_a_failure_stays_until_an_outer_one_ends() -> None:
    timers = StepTimers()

    def fail() -> None:
        with timers.enter("data"):
            timers("forward-recv").start()
            raise ValueError("bad")

    with timers.enter("evaluation"):
        with pytest.raises(ValueError, match="bad"):
            fail()
        assert timers.current == "communication"
    assert timers.current == "other"


def steps_and_evaluation(overrides: tuple[str, ...]) -> tuple[dict[str, float], float, dict[str, float], set[str]]:
    """Of five steps, seconds by phase and passed in all; by phase of an evaluation; names that another thread saw."""
    with tiny_trainable(*overrides) as trainable:
        batches = random_batches(trainable, 161)
        seen: set[str] = set()
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.0005):
                seen.add(trainable.timers.current)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            trainable.timers.take()
            started = trainable.timers.since
            for step in range(1, 6):
                take_step(trainable, batches, step=step)
            taken = trainable.timers.take()
            passed = trainable.timers.since - started
            with trainable.timers.enter("evaluation"):
                held_out_loss(trainable, batches, trainable.num_microbatches)
        finally:
            done.set()
            watcher.join()
        assert trainable.timers.current == "other"
        return taken, passed, trainable.timers.take(), seen


@pytest.mark.parametrize(
    "layout",
    [
        ("parallel.tensor_model_parallel_size=2",),
        ("parallel.pipeline_model_parallel_size=2",),
        (
            "parallel.pipeline_model_parallel_size=2",
            "parallel.virtual_pipeline_model_parallel_size=2",
            "model.num_layers=4",
        ),
        ("parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true"),
    ],
    ids=["tp2", "pp2", "pp2-vpp2", "dp2-overlap"],
)
def test_phases_of_a_step_add_up_to_its_time(ranks: RankPool, layout: tuple[str, ...]) -> None:
    for taken, passed, evaluation, seen in ranks.run(2, steps_and_evaluation, overrides=layout):
        assert set(taken) == set(STEP_PHASES)
        assert sum(taken.values()) == pytest.approx(passed)
        assert all(seconds > 0 for seconds in taken.values())
        assert taken["other"] < 0.1 * passed, "what nobody measures is small"
        assert {"forward", "backward"} <= seen <= {*STEP_PHASES, "evaluation"}
        assert evaluation["forward"] > 0
        assert "backward" not in evaluation


def communications(overrides: tuple[str, ...]) -> int:
    """How often a step's layers send, or wait for what they have sent."""
    with tiny_trainable(*overrides) as trainable:
        count = 0

        def enter() -> AbstractContextManager[None]:
            nonlocal count
            count += 1
            return nullcontext()

        # Not the trainable's own timers: a step would hear itself.
        objective = NextTokenLoss()
        with report_comm_to(enter):
            outputs = forward_backward(
                trainable,
                objective,
                random_batches(trainable, 161),
                shape=trainable.shape,
                num_microbatches=trainable.num_microbatches,
                forward_only=False,
                step=0,
            )
            means(outputs, objective, trainable.groups)
        return count


def test_collectives_inside_layers_are_communication(ranks: RankPool) -> None:
    layers, microbatches = 2, 4
    # Forward: embedding, and attention and feed-forward of each layer. Backward: the same two, sent and waited for.
    # Loss: maximum, sums, gradient.
    tensor = microbatches * ((1 + 2 * layers) + 2 * 2 * layers + 3)
    assert ranks.run(2, communications, overrides=("parallel.tensor_model_parallel_size=2",)) == [tensor] * 2
    # Keys and values, gathered forward, reduced backward.
    context = microbatches * 2 * 2 * layers
    assert ranks.run(2, communications, overrides=("parallel.context_parallel_size=2",)) == [context] * 2
    assert ranks.run(1, communications, overrides=()) == [0]


def test_another_thread_than_the_listening_one_is_passed_over() -> None:
    timers = StepTimers()
    seen = []

    def communicate() -> None:
        with comm_timer():
            seen.append(timers.current)

    with report_comm_to(functools.partial(timers.enter, "communication")):
        thread = threading.Thread(target=communicate)
        thread.start()
        thread.join()
        communicate()
    communicate()
    assert seen == ["other", "communication", "other"]


def test_two_models_hear_their_own_communication(ranks: RankPool) -> None:
    """The second one built took the first one's clock."""
    for first, second in ranks.run(2, two_clocks):
        assert first == (True, False)
        assert second == (False, True)


def two_clocks() -> list[tuple[bool, bool]]:
    """For a step of each of two models: whether communication was counted on either clock."""
    with tiny_trainable("parallel.tensor_model_parallel_size=2") as first:
        second = tiny_built(tiny_config("parallel.tensor_model_parallel_size=2"), first.groups)
        counted = []
        for one in (first, second):
            for clock in (first.timers, second.timers):
                clock.take()
            take_step(one, random_batches(one, 161))
            # Entered a thousand times inside layers, not only around the step.
            counted.append(tuple(clock.take().get("communication", 0.0) > 0 for clock in (first.timers, second.timers)))
        return counted
