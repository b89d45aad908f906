"""Weights & Biases, for those who ask for it; the package is imported only then."""

from __future__ import annotations

import json
import logging
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from data_tools.io.atomic_file import refuse_link, write_atomically
from data_tools.io.small_json import MissingFileError, SmallFileError, read_object
from qwen_megatron.train.run import EvaluationRecord, Hook, Run, StepRecord

log = logging.getLogger(__name__)

RUN_ID = "wandb.json"
# What wandb takes for an id.
RUN_ID_FORM = re.compile(r"[A-Za-z0-9_-]{1,64}")


class WandbHook(Hook):
    """Reports steps and evaluations from rank 0; every start of a run goes on in the same Weights & Biases run.

    Args:
        project: Name of the project.
        mode: `online` or `offline`.
        config: Settings to show there, by section.
    """

    def __init__(self, project: str, mode: str, config: Mapping[str, Any]):
        self.project = project
        self.mode = mode
        self.config = config
        self.run: Any = None
        self.has_ended = False

    def on_start(self, run: Run) -> None:
        if not run.is_main:
            return
        import wandb

        refuse_link(run.directory / "wandb")
        self.run = wandb.init(
            project=self.project,
            mode=cast(Literal["online", "offline"], self.mode),
            id=run_id(run.directory / RUN_ID),
            name=run.directory.absolute().name,
            dir=str(run.directory),
            resume="allow",
            config=dict(self.config),
            settings=wandb.Settings(console="off"),
        )
        # Steps after a checkpoint may come twice. Numbered by wandb itself, the second ones would be thrown away.
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def on_step(self, run: Run, record: StepRecord) -> None:
        if self.run is None:
            return
        names = ("loss", "grad_norm", "learning_rate", "tokens_per_second", "step_seconds", "peak_memory_bytes")
        row: dict[str, float] = {"step": record.step, "consumed_tokens": record.consumed_tokens}
        row |= {f"train/{name}": getattr(record, name) for name in names}
        row |= {f"train/{name}": value for name, value in record.metrics.items()}
        row |= {f"seconds/{name}": seconds for name, seconds in record.phase_seconds.items()}
        if record.model_flops_utilization is not None:
            row["train/model_flops_utilization"] = record.model_flops_utilization
        self.run.log(row)

    def on_evaluation(self, run: Run, record: EvaluationRecord) -> None:
        if self.run is not None:
            measured = {"loss": record.eval_loss, **record.metrics}
            of = "" if record.corpus is None else f"{record.corpus}/"
            self.run.log({"step": record.step, **{f"eval/{of}{name}": value for name, value in measured.items()}})

    def on_end(self, run: Run) -> None:
        self.has_ended = True

    def close(self) -> None:
        if self.run is not None:
            self.run.finish(exit_code=0 if self.has_ended else 1)


def run_id(path: Path) -> str:
    """The Weights & Biases id of a run, kept in its folder; a new one if what is there is none.

    Raises:
        DataError: if the file is a symbolic link.
        OSError: if it cannot be written.
    """
    refuse_link(path)
    try:
        found = read_object(path).get("id")
        if isinstance(found, str) and RUN_ID_FORM.fullmatch(found):
            return found
        log.warning("%s: holds no id of a Weights & Biases run; a new one is begun there", path)
    except MissingFileError:
        log.debug("%s: a new run", path)
    except SmallFileError as error:
        log.warning("%s; a new Weights & Biases run is begun", error)
    number = secrets.token_hex(8)
    write_atomically(path, json.dumps({"id": number}).encode())
    return number
