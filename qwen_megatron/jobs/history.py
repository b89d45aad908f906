"""`starts.jsonl`: one row for each start of a run, for the report and for whoever asks what ran when."""

from __future__ import annotations

import json
import socket
from datetime import UTC, datetime
from pathlib import Path

from data_tools.io.atomic_file import append_line
from qwen_megatron.checkpoint.environment import environment
from qwen_megatron.checkpoint.state import config_sections
from qwen_megatron.train.run import Hook, Run
from qwen_megatron.train.writing import writing

STARTS = "starts.jsonl"


class HistoryHook(Hook):
    """Records a start; after the hook that drops the rows of metrics.jsonl which this start trains again.

    In this order a row of a step that is still there was written by the latest start before it, whenever a job is
    killed: that is how `trace` finds the settings of a step.
    """

    def on_start(self, run: Run) -> None:
        if run.is_main:
            record_start(run)


def record_start(run: Run) -> None:
    """Appends when and where a start took place, from which step, on which layout, versions, settings and data.

    Raises:
        DataError: if the file is a symbolic link.
    """
    sources = run.job.sources(run.state)
    row = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": run.state.iteration,
        "host": socket.gethostname(),
        # What relative paths of the settings start from.
        "working_directory": str(Path.cwd()),
        "world_size": run.job.config.world_size,
        "environment": environment(),
        "config": config_sections(run.job.config),
        "data": {name: {key: source[key] for key in ("fingerprint", "tokenizer")} for name, source in sources.items()},
        "corpora": run.job.corpora(run.state),
        "loss_title": run.job.loss_title,
    }
    with writing(run.directory / STARTS):
        append_line(run.directory / STARTS, json.dumps(row))
