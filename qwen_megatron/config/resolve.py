"""From what a user gave to a resolved configuration: every value fixed, every rule checked, sizes worked out."""

from __future__ import annotations

from dataclasses import dataclass

from data_tools.settings.problems import Problems
from qwen_megatron.config.arithmetic.flops import training_flops_per_token
from qwen_megatron.config.arithmetic.parameters import count_parameters, parameters_per_stage
from qwen_megatron.config.arithmetic.stages import layers_per_stage
from qwen_megatron.config.fill import Sections, fill_sections
from qwen_megatron.config.job_shape import LANGUAGE_MODELLING, JobShape
from qwen_megatron.config.rules.check import check_sections
from qwen_megatron.config.schema import Settings
from qwen_megatron.config.sections.checkpoint import CheckpointConfig
from qwen_megatron.config.sections.data import DataConfig
from qwen_megatron.config.sections.logging import LoggingConfig
from qwen_megatron.config.sections.model import ModelConfig
from qwen_megatron.config.sections.optimizer import OptimizerConfig
from qwen_megatron.config.sections.parallel import ParallelConfig
from qwen_megatron.config.sections.ppo import PpoConfig
from qwen_megatron.config.sections.training import TrainingConfig
from qwen_megatron.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ResolvedConfig:
    """A run, worked out.

    Attributes:
        model, parallel, optimizer, training, data, checkpoint, logging, ppo: The sections, every value fixed.
        world_size: Processes of the job.
        data_parallel_size: Replicas of the model: world size / (tensor x pipeline x context size).
        num_microbatches: Micro-batches of each data-parallel rank in an optimizer step of the full batch.
        num_steps: Optimizer steps of the whole run.
        padded_vocab_size: Rows of the embedding over all tensor-parallel ranks: the smallest multiple of their number
            that holds the vocabulary.
        layers_per_stage: Layers of each pipeline stage.
        num_parameters: Parameters of the whole model, without padding.
        num_parameters_per_rank: Parameters that one rank of each pipeline stage stores.
        flops_per_token: Floating-point operations to train one token; see `config.flops`.
        shape: What the job makes of the model and of samples.
    """

    model: ModelConfig
    parallel: ParallelConfig
    optimizer: OptimizerConfig
    training: TrainingConfig
    data: DataConfig
    checkpoint: CheckpointConfig
    logging: LoggingConfig
    ppo: PpoConfig
    world_size: int
    data_parallel_size: int
    num_microbatches: int
    num_steps: int
    padded_vocab_size: int
    layers_per_stage: tuple[int, ...]
    num_parameters: int
    num_parameters_per_rank: tuple[int, ...]
    flops_per_token: float
    shape: JobShape = LANGUAGE_MODELLING

    @property
    def tokens_per_step(self) -> int:
        """Tokens of an optimizer step of the full batch over all processes."""
        return self.training.global_batch_size * self.shape.rows_per_sample * self.training.seq_length

    @property
    def rows_per_micro_batch(self) -> int:
        """Sequences that a process computes at a time."""
        return self.training.micro_batch_size * self.shape.rows_per_sample

    def microbatches_of(self, batch_size: int) -> int:
        """Micro-batches of each data-parallel rank in a step of `batch_size` samples."""
        return batch_size // (self.training.micro_batch_size * self.data_parallel_size)


def resolve(settings: Settings, world_size: int | None = None, shape: JobShape = LANGUAGE_MODELLING) -> ResolvedConfig:
    """Fixes every value and checks every rule; changes nothing.

    Args:
        settings: As given.
        world_size: Processes that a launcher started; None if there is none.
        shape: Of the job.
    Raises:
        ConfigError: with every broken rule.
    """
    problems = Problems()
    sections = examine(settings, world_size, problems)
    if problems.messages:
        raise ConfigError(problems.messages)
    return resolved_config(sections, shape)


def examine(settings: Settings, world_size: int | None, problems: Problems) -> Sections:
    """The sections with every value fixed; what is wrong goes to `problems`.

    Args:
        settings: As given.
        world_size: As for `resolve`.
        problems: Filled; keys that are unusable from the start are left alone.
    """
    sections = fill_sections(settings, world_size, problems)
    check_sections(sections, problems)
    return sections


def resolved_config(sections: Sections, shape: JobShape = LANGUAGE_MODELLING) -> ResolvedConfig:
    """The resolved configuration of sections that break no rule."""
    model, parallel, training = sections.model, sections.parallel, sections.training
    tensor_size, num_stages = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    data_parallel_size = parallel.world_size // parallel.replica_size
    stages = layers_per_stage(
        model.num_layers,
        num_stages,
        parallel.num_layers_in_first_pipeline_stage,
        parallel.num_layers_in_last_pipeline_stage,
    )
    padded_vocab_size = -(-model.vocab_size // tensor_size) * tensor_size
    return ResolvedConfig(
        model=model,
        parallel=parallel,
        optimizer=sections.optimizer,
        training=training,
        data=sections.data,
        checkpoint=sections.checkpoint,
        logging=sections.logging,
        ppo=sections.ppo,
        world_size=parallel.world_size,
        data_parallel_size=data_parallel_size,
        num_microbatches=training.global_batch_size // (training.micro_batch_size * data_parallel_size),
        num_steps=training.batch_sizes.steps_between(0, training.samples_in_all),
        padded_vocab_size=padded_vocab_size,
        layers_per_stage=stages,
        num_parameters=count_parameters(model, has_scalar_head=shape.has_scalar_head),
        num_parameters_per_rank=parameters_per_stage(
            model,
            tensor_size=tensor_size,
            padded_vocab_size=padded_vocab_size,
            layers_per_stage=stages,
            has_scalar_head=shape.has_scalar_head,
        ),
        flops_per_token=training_flops_per_token(model, training.seq_length, has_scalar_head=shape.has_scalar_head),
        shape=shape,
    )
