"""`starts.jsonl`: one row for each start of a run, for the report and for whoever asks what ran when."""

from __future__ import annotations

import json
import socket
from datetime import UTC, datetime

from data_tools.io.atomic_file import append_line
from qwen_megatron.checkpoint.state import config_sections, environment
from qwen_megatron.train.run import Run
from qwen_megatron.train.writing import writing

STARTS = "starts.jsonl"


def record_start(run: Run) -> None:
    """Appends when and where a start took place, from which step, on which layout, versions and settings.

    Raises:
        DataError: if the file is a symbolic link.
    """
    row = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": run.state.iteration,
        "host": socket.gethostname(),
        "world_size": run.job.config.world_size,
        "environment": environment(),
        "config": config_sections(run.job.config),
        "corpora": run.job.corpora(run.state),
    }
    with writing(run.directory / STARTS):
        append_line(run.directory / STARTS, json.dumps(row))
