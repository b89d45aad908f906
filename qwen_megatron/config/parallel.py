"""Section `parallel`: how the model and the batch are laid out over processes."""

from __future__ import annotations

from dataclasses import dataclass, field

from qwen_megatron.config.setting import about, count

MAX_PROCESSES = 1 << 20
LONGEST_TIMEOUT = 7 * 86400


@dataclass(frozen=True, kw_only=True)
class ParallelOptions:
    """Section `parallel` as a user gives it."""

    tensor_model_parallel_size: int = field(
        default=1, metadata=count("Processes that share the matrices of every layer.", maximum=MAX_PROCESSES)
    )
    pipeline_model_parallel_size: int = field(
        default=1, metadata=count("Stages the layers are divided into, one after the other.", maximum=MAX_PROCESSES)
    )
    virtual_pipeline_model_parallel_size: int | None = field(
        default=None,
        metadata=count(
            "Pieces of the model that each pipeline stage holds, interleaved: smaller pipeline bubbles for more "
            "communication. Default: one piece, the plain 1F1B schedule.",
            minimum=2,
            maximum=MAX_PROCESSES,
        ),
    )
    num_layers_in_first_pipeline_stage: int | None = field(
        default=None,
        metadata=count(
            "Layers of the first pipeline stage, which holds the embedding too; the stages between share the rest "
            "evenly. Default: as many as the others.",
            maximum=10_000,
        ),
    )
    num_layers_in_last_pipeline_stage: int | None = field(
        default=None,
        metadata=count(
            "Layers of the last pipeline stage, which holds the output layer and the loss too. Default: as many as the "
            "others.",
            maximum=10_000,
        ),
    )
    context_parallel_size: int = field(
        default=1,
        metadata=count(
            "Processes that share every sequence, two slices each so that causal attention is balanced.",
            maximum=MAX_PROCESSES,
        ),
    )
    sequence_parallel: bool = field(
        default=False,
        metadata=about(
            "Split norms, dropouts and residual stream along the sequence over the tensor-parallel processes; the "
            "result is the same, activations take less memory."
        ),
    )
    overlap_grad_reduce: bool = field(
        default=False, metadata=about("Reduce gradients over the replicas while the backward pass still runs.")
    )
    overlap_param_gather: bool = field(
        default=False,
        metadata=about("Gather updated weights while the next forward pass already runs; needs `overlap_grad_reduce`."),
    )
    recompute_granularity: str = field(
        default="none",
        metadata=about(
            "What is computed again in the backward pass instead of being kept: `none`, the core attention "
            "(`selective`), or whole layers (`full`).",
            choices=("none", "selective", "full"),
        ),
    )
    world_size: int | None = field(
        default=None,
        metadata=count(
            "Processes of the job. Default: what torchrun started, otherwise tensor x pipeline x context size.",
            maximum=MAX_PROCESSES,
        ),
    )
    platform: str = field(
        default="auto",
        metadata=about(
            "`cuda` uses NCCL, `cpu` gloo and torch kernels; `auto` takes cuda where a device is there.",
            choices=("auto", "cpu", "cuda"),
        ),
    )
    start_timeout_seconds: int = field(
        default=1800,
        metadata=count(
            "A start fails if a process has not joined after this time, or makes no progress for so long until the "
            "first step is done.",
            maximum=LONGEST_TIMEOUT,
        ),
    )
    step_timeout_seconds: int = field(
        default=600,
        metadata=count(
            "A process that makes no progress for so long in a step ends and says which process is silent.",
            maximum=LONGEST_TIMEOUT,
        ),
    )
    evaluation_timeout_seconds: int = field(
        default=600, metadata=count("The same in an evaluation.", maximum=LONGEST_TIMEOUT)
    )
    save_timeout_seconds: int = field(
        default=1800, metadata=count("The same for a whole save.", maximum=LONGEST_TIMEOUT)
    )


@dataclass(frozen=True, kw_only=True)
class ParallelConfig(ParallelOptions):
    """Section `parallel`, every value fixed."""

    world_size: int = field(metadata=count("Processes of the job.", maximum=MAX_PROCESSES))

    @property
    def replica_size(self) -> int:
        """Processes that hold one replica of the model and work on the same samples."""
        return self.tensor_model_parallel_size * self.pipeline_model_parallel_size * self.context_parallel_size

    @property
    def collective_timeout_seconds(self) -> int:
        """Collectives fail by themselves after it, where nothing else has noticed before."""
        return 30 + max(
            self.start_timeout_seconds,
            self.step_timeout_seconds,
            self.evaluation_timeout_seconds,
            self.save_timeout_seconds,
        )
