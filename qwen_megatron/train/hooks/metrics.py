"""metrics.jsonl and TensorBoard files in the run's folder, written by rank 0."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from data_tools.io.atomic_file import atomic_output, open_unfollowed, refuse_link
from data_tools.io.small_json import fits, read_rows
from qwen_megatron.train.run import EvaluationRecord, Hook, Run, StepRecord
from qwen_megatron.train.writing import append_whole, writing

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


log = logging.getLogger(__name__)


class MetricsHook(Hook):
    """Appends one JSON object a step and an evaluation to `metrics.jsonl`.

    When a run goes on from a checkpoint, rows of steps after it are removed first: they are about to be done again.
    """

    def __init__(self) -> None:
        self.path = Path()
        self.stream: BinaryIO | None = None

    def on_start(self, run: Run) -> None:
        if run.is_main:
            self.path = run.directory / "metrics.jsonl"
            refuse_link(self.path)
            with writing(self.path):
                # A fresh start evaluates before its first step: the row of step 0 is written again too.
                drop_rows_after(self.path, run.state.iteration or -1)
                descriptor = open_unfollowed(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
                self.stream = cast(BinaryIO, os.fdopen(descriptor, "ab", buffering=0))

    def on_step(self, run: Run, record: StepRecord) -> None:
        row = flat(record)
        # The float exactly, to tell "bitwise equal" from "equal in print".
        self.write({"step": row.pop("step"), "loss": row.pop("loss"), "loss_hex": record.loss.hex(), **row})

    def on_evaluation(self, run: Run, record: EvaluationRecord) -> None:
        self.write(flat(record))

    def on_row(self, run: Run, row: Mapping[str, object]) -> None:
        self.write(row)

    def write(self, row: Mapping[str, object]) -> None:
        """Appends a row; what is not finite becomes null."""
        if self.stream is not None:
            # JSON has neither NaN nor infinity.
            finite = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in row.items()}
            with writing(self.path):
                append_whole(self.stream, json.dumps(finite).encode() + b"\n")

    def close(self) -> None:
        if self.stream is not None:
            self.stream.close()


def flat(record: StepRecord | EvaluationRecord) -> dict[str, Any]:
    """A record as a row; a job's own metrics stand beside the fields that all jobs have."""
    row = dataclasses.asdict(record)
    if row.get("corpus", "") is None:
        del row["corpus"]
    return row | row.pop("metrics")


def drop_rows_after(path: Path, step: int) -> None:
    """Keeps the rows up to `step`; what is no row goes too, with a warning unless it is the torn end of a killed run.

    Raises:
        DataError: if the file cannot be read at all.
        OSError: if it cannot be written.
    """
    if not path.exists():
        return
    num_odd = 0
    with atomic_output(path) as kept:
        for line, row in read_rows(path):
            if row is not None and fits(row.get("step"), float):
                if row["step"] <= step:
                    kept.write(line if line.endswith(b"\n") else line + b"\n")
            elif line.endswith(b"\n"):
                num_odd += 1
    if num_odd:
        log.warning("%s: %d lines are no rows of steps; they are left out", path, num_odd)


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
            of = "" if record.corpus is None else f"{record.corpus}/"
            for name, value in {"loss": record.eval_loss, **record.metrics}.items():
                self.writer.add_scalar(f"eval/{of}{name}", value, record.step)
            self.writer.flush()

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
