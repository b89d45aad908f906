"""Why a run failed, for its next start: written by the rank that failed, without asking any other.

`failure.json` in the run's folder is the latest failure; the next start that goes on from it moves it to
`failures.jsonl`. Neither needs torch: a start that cannot help is refused before anything is imported. Only the same
settings are refused: a corrected command is another start.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from data_tools.io.atomic_file import append_line, atomic_output, write_atomically
from data_tools.io.small_json import SmallFileError, build, read_json
from qwen_megatron.checkpoint.state import config_sections
from qwen_megatron.config.resolve import ResolvedConfig
from qwen_megatron.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    NonFiniteError,
    ReaderFailed,
    ReplicaError,
    TrainingError,
    UnseenCheckpoint,
)

FAILURE = "failure.json"
HISTORY = "failures.jsonl"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One failure of a run.

    Attributes:
        error: Class of the error.
        message: What it says.
        rank: Number of the process in the job.
        host: Its machine.
        pid: Its process number.
        attempt: Number of torchrun's start, the first is 0.
        step: The step it was in.
        phase: What it was doing (`train/step_timers.py`).
        samples: First and last sample number of the step; empty before training.
        time: UTC, ISO 8601.
        restart_helps: Whether the same command may succeed when it is started again.
        lost_peer: Another rank's failure came first, and this one only noticed.
        settings: `settings_digest` of the start; empty in records of earlier versions.
    """

    error: str
    message: str
    rank: int
    host: str
    pid: int
    attempt: int
    step: int
    phase: str
    samples: tuple[int, ...]
    time: str
    restart_helps: bool
    lost_peer: bool
    settings: str = ""

    def __str__(self) -> str:
        where = f"rank {self.rank} ({self.host}, process {self.pid})"
        samples = f", samples {self.samples[0]} to {self.samples[-1]}" if self.samples else ""
        return f"{where}: step {self.step}, {self.phase}{samples}: {self.error}: {self.message}"


def settings_digest(config: ResolvedConfig) -> str:
    """What tells the settings of two starts apart, in hexadecimal; how many processes take part does not count."""
    sections = config_sections(config)
    sections["parallel"].pop("world_size")
    return hashlib.sha256(json.dumps(sections, sort_keys=True).encode()).hexdigest()


def restart_helps(error: BaseException, activity: str) -> bool:
    """Whether another start may succeed where this one failed, doing what."""
    if isinstance(error, UnseenCheckpoint):
        return True
    if isinstance(error, CheckpointError):
        # What cannot be saved now may be saved later; what does not load or fit today will not tomorrow.
        return activity == "saving"
    # Weights went wrong though loss and gradients did not: more likely a machine's fault than the data's. If it comes
    # again, torchrun's limit of restarts ends it.
    if isinstance(error, ReplicaError | NonFiniteError):
        return True
    return not isinstance(error, ConfigError | DataError | TrainingError)


def is_lost_peer(error: BaseException) -> bool:
    """Whether another rank is gone or silent, or has said that it fails: its own record says why."""
    if isinstance(error, ReaderFailed):
        return True
    kinds = {kind.__name__ for kind in type(error).__mro__}
    # gloo's errors have no class of their own, but name their source file.
    return "DistError" in kinds or ("RuntimeError" in kinds and ("gloo/" in str(error) or "NCCL" in str(error)))


def write_failure(directory: Path, failure: Failure) -> None:
    """Keeps the failure, if no other rank was first; one that only lost its peer gives way to the culprit's own."""
    path = directory / FAILURE
    content = (json.dumps(dataclasses.asdict(failure), indent=2) + "\n").encode()
    try:
        # The first one stays.
        with atomic_output(path, replace=False) as stream:
            stream.write(content)
    except FileExistsError:
        present = read_failure(directory)
        if not failure.lost_peer and (present is None or present.lost_peer):
            write_atomically(path, content)


def read_failure(directory: Path) -> Failure | None:
    """The latest failure; None if there is none or the file is damaged."""
    with contextlib.suppress(SmallFileError):
        return build(Failure, read_json(directory / FAILURE), FAILURE)
    return None


def refusal(directory: Path, settings: str) -> str | None:
    """Why a start in this folder cannot help, and how to clear it; None if it may.

    Args:
        directory: The run's folder.
        settings: `settings_digest` of the start; with other settings it is another start, and may.
    """
    failure = read_failure(directory)
    if failure is None or failure.restart_helps or failure.settings != settings:
        return None
    path = directory / FAILURE
    return (
        f"{path}: the last start failed at {failure.time}, and the same start would fail again: {failure}. Change the "
        f"settings that are to blame; or mend what else the cause is, then remove {path}"
    )


def retire_failure(directory: Path) -> None:
    """Moves the failure that a start goes on from to the history.

    Raises:
        DataError: if the history is a symbolic link.
    """
    path = directory / FAILURE
    failure = read_failure(directory)
    if failure is not None:
        append_line(directory / HISTORY, json.dumps(dataclasses.asdict(failure)))
    if not path.is_dir():
        path.unlink(missing_ok=True)
