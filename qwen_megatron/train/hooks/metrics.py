"""metrics.jsonl and TensorBoard files in the run's folder, written by rank 0."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from data_tools.atomic_file import append_stream, refuse_link, write_atomically
from qwen_megatron.train.run import EvaluationRecord, Hook, Run, StepRecord

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class MetricsHook(Hook):
    """Appends one JSON object a step and an evaluation to `metrics.jsonl`.

    When a run goes on from a checkpoint, rows of steps after it are removed first: they are about to be done again.
    """

    def __init__(self) -> None:
        self.stream: TextIO | None = None

    def on_start(self, run: Run) -> None:
        if run.is_main:
            path = run.directory / "metrics.jsonl"
            refuse_link(path)
            # A fresh start evaluates before its first step: the row of step 0 is written again too.
            drop_rows_after(path, run.state.iteration or -1)
            self.stream = io.TextIOWrapper(append_stream(path), encoding="utf-8")

    def on_step(self, run: Run, record: StepRecord) -> None:
        row = flat(record)
        # The float exactly, to tell "bitwise equal" from "equal in print".
        self.write({"step": row.pop("step"), "loss": row.pop("loss"), "loss_hex": record.loss.hex(), **row})

    def on_evaluation(self, run: Run, record: EvaluationRecord) -> None:
        self.write(flat(record))

    def on_row(self, run: Run, row: Mapping[str, object]) -> None:
        self.write(row)

    def write(self, row: Mapping[str, object]) -> None:
        if self.stream is not None:
            # JSON has neither NaN nor infinity.
            finite = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in row.items()}
            self.stream.write(json.dumps(finite) + "\n")
            self.stream.flush()

    def close(self) -> None:
        if self.stream is not None:
            self.stream.close()


def flat(record: StepRecord | EvaluationRecord) -> dict[str, Any]:
    """A record as a row; a job's own metrics stand beside the fields that all jobs have."""
    row = dataclasses.asdict(record)
    return row | row.pop("metrics")


def drop_rows_after(path: Path, step: int) -> None:
    """Keeps the rows up to `step`; a torn last line of a killed run goes too."""
    if not path.exists():
        return
    kept = [line for line in path.read_text(encoding="utf-8").splitlines() if row_step(line) <= step]
    write_atomically(path, "".join(line + "\n" for line in kept).encode())


def row_step(line: str) -> float:
    """Step of a row, infinity if the line is torn."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")


class TensorBoardHook(Hook):
    """Writes scalars for TensorBoard under `tensorboard/`."""

    def __init__(self) -> None:
        self.writer: SummaryWriter | None = None

    def on_start(self, run: Run) -> None:
        if run.is_main:
            from torch.utils.tensorboard import SummaryWriter

            refuse_link(run.directory / "tensorboard")
            # purge_step hides events of steps that are about to be done again.
            self.writer = SummaryWriter(str(run.directory / "tensorboard"), purge_step=run.state.iteration + 1)

    def on_step(self, run: Run, record: StepRecord) -> None:
        if self.writer is not None:
            for name in ("loss", "grad_norm", "learning_rate", "tokens_per_second", "step_seconds"):
                self.writer.add_scalar(f"train/{name}", getattr(record, name), record.step)
            for name, seconds in record.phase_seconds.items():
                self.writer.add_scalar(f"seconds/{name}", seconds, record.step)
            for name, value in record.metrics.items():
                self.writer.add_scalar(f"train/{name}", value, record.step)

    def on_evaluation(self, run: Run, record: EvaluationRecord) -> None:
        if self.writer is not None:
            for name, value in {"loss": record.eval_loss, **record.metrics}.items():
                self.writer.add_scalar(f"eval/{name}", value, record.step)
            self.writer.flush()

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
