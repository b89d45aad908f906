"""`starts.jsonl`: one row for each start of a run, for the report and for whoever asks what ran when."""

from __future__ import annotations

import json
import os
import socket
from datetime import UTC, datetime

from qwen_megatron.checkpoint.state import config_sections, environment
from qwen_megatron.train.run import Run

STARTS = "starts.jsonl"


def record_start(run: Run) -> None:
    """Appends when and where a start took place, from which step, on which layout, versions and settings."""
    row = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": run.state.iteration,
        "host": socket.gethostname(),
        "world_size": run.job.config.world_size,
        "environment": environment(),
        "config": config_sections(run.job.config),
    }
    path = run.directory / STARTS
    # A row that a crash cut short must not swallow the next one.
    torn = path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as stream:
        stream.write(("\n" if torn else "") + json.dumps(row) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
