"""Errors that a user can cause and mend; everything else is a bug.

Each message names the file or key, the rule that is broken, the operands and what to change.
`DataError` belongs to `data_tools`, which does not know this package; it is re-exported for convenience.
"""

from data_tools.errors import DataError, Refusal
from data_tools.settings.problems import SettingsError

__all__ = [
    "ChangesRefused",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "NonFiniteError",
    "OutputRefused",
    "PlatformError",
    "ReaderDataError",
    "ReaderFailed",
    "ReplicaError",
    "TrainingError",
    "UnseenCheckpoint",
]


class ConfigError(SettingsError):
    """The configuration breaks one or more rules; all of them are in the message."""


class CheckpointError(Exception):
    """A checkpoint or Hugging Face folder is incomplete, damaged or does not fit the run."""


class UnseenCheckpoint(CheckpointError):
    """A rank does not see the checkpoint that others see; it may when the job is started again."""


class OutputRefused(Refusal, CheckpointError):
    """A conversion would write over what it must not; nothing was done."""


class ChangesRefused(Refusal, CheckpointError):
    """A run would go on with other settings or data than its checkpoint's; starting it again does not help."""


class PlatformError(Exception):
    """The machine or an installed library cannot do what the configuration asks for."""


class TrainingError(Exception):
    """A run met something it must not train through, such as a loss that is not a number."""


class NonFiniteError(TrainingError):
    """Weights or the optimizer's state hold NaN or infinity; they are not saved, the last checkpoint is good."""


class ReplicaError(TrainingError):
    """Ranks that must hold the same weights do not: a machine is ill, the last checkpoint is not."""


class ReaderFailed(Exception):
    """The rank that reads samples for this one could not; that rank reports why itself."""


class ReaderDataError(ReaderFailed, DataError):
    """It found a file damaged or missing, which the message names."""
