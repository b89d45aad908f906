"""Evaluation on the held-out samples."""

from __future__ import annotations

import time

from qwen_megatron.train.finite import check_evaluation
from qwen_megatron.train.run import EvaluationRecord, Hook, Run, StepRecord


class EvaluationHook(Hook):
    """Evaluates every `interval` steps, before the first step of a fresh run and after the last."""

    def __init__(self, interval: int):
        self.interval = interval
        self.evaluated_at = -1

    def on_start(self, run: Run) -> None:
        if run.state.iteration == 0:
            self.evaluate(run)
        elif run.state.iteration >= run.last_step:
            # Started again after its end: nothing has changed since it was evaluated.
            self.evaluated_at = run.state.iteration

    def on_step(self, run: Run, record: StepRecord) -> None:
        if record.step % self.interval == 0:
            self.evaluate(run)

    def on_end(self, run: Run) -> None:
        # A run that was told to leave has no time for it.
        if run.stopping is None and self.evaluated_at != run.state.iteration:
            self.evaluate(run)

    def evaluate(self, run: Run) -> None:
        """Evaluates on every corpus and tells all hooks of each result."""
        run.job.check_data()
        self.evaluated_at = run.state.iteration
        for corpus in run.job.evaluated_corpora():
            self.evaluate_on(run, corpus)

    def evaluate_on(self, run: Run, corpus: str | None) -> None:
        """Evaluates on one corpus and tells all hooks of the result."""
        started = time.perf_counter()
        with run.timers.enter("evaluation"):
            loss, metrics = run.job.evaluate(run, corpus)
        record = EvaluationRecord(
            step=run.state.iteration,
            eval_loss=loss,
            eval_seconds=time.perf_counter() - started,
            metrics=metrics,
            corpus=corpus,
        )
        for hook in run.hooks:
            hook.on_evaluation(run, record)
        if not run.job.config.checkpoint.allow_nonfinite:
            check_evaluation(run.trainables.values(), run.state.iteration, loss)
