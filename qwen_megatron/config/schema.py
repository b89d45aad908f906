"""The whole configuration of a run, as a user gives it."""

from __future__ import annotations

from dataclasses import dataclass, field

from qwen_megatron.config.checkpoint import CheckpointConfig
from qwen_megatron.config.data import DataOptions
from qwen_megatron.config.logging import LoggingConfig
from qwen_megatron.config.model import ModelOptions
from qwen_megatron.config.optimizer import OptimizerOptions
from qwen_megatron.config.parallel import ParallelOptions
from qwen_megatron.config.training import TrainingOptions


@dataclass(frozen=True, kw_only=True)
class Config:
    """The sections of a configuration file."""

    model: ModelOptions = field(default_factory=ModelOptions)
    parallel: ParallelOptions = field(default_factory=ParallelOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    data: DataOptions = field(default_factory=DataOptions)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
