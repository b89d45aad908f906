"""A function of the user's, called after every step."""

from __future__ import annotations

from collections.abc import Callable

from qwen_megatron.train.run import Hook, Run, StepRecord


class CallbackHook(Hook):
    """Calls a function on rank 0.

    Args:
        function: Takes the record of the step; what it raises ends the run.
    """

    def __init__(self, function: Callable[[StepRecord], None]) -> None:
        self.function = function

    def on_step(self, run: Run, record: StepRecord) -> None:
        if run.is_main:
            self.function(record)
