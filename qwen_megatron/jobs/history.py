"""`starts.jsonl`: one row for each start of a run, for the report and for whoever asks what ran when."""

from __future__ import annotations

import json
import os
import socket
from datetime import UTC, datetime

from qwen_megatron.checkpoint.contents import config_sections, environment
from qwen_megatron.train.run import Run
from qwen_megatron.train.writing import append_whole, writing

STARTS = "starts.jsonl"


def record_start(run: Run) -> None:
    """Appends when and where a start took place, from which step, on which layout, versions and settings."""
    row = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": run.state.iteration,
        "host": socket.gethostname(),
        "world_size": run.config.world_size,
        "environment": environment(),
        "config": config_sections(run.config),
    }
    path = run.directory / STARTS
    with writing(path), path.open("a+b", buffering=0) as stream:
        # A row that a crash cut short must not swallow the next one.
        torn = stream.tell() and os.pread(stream.fileno(), 1, stream.tell() - 1) != b"\n"
        append_whole(stream, (b"\n" if torn else b"") + json.dumps(row).encode() + b"\n")
        os.fsync(stream.fileno())
