"""Section `parallel`: how the model and the batch are laid out over processes."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Interval

from data_tools.settings.records import record

Processes = Annotated[int, Interval(ge=1, le=1 << 20)]
# A week.
Timeout = Annotated[int, Interval(ge=1, le=7 * 86400)]


@record
class ParallelConfig:
    """Section `parallel`."""

    tensor_model_parallel_size: Processes = 1
    """Processes that share the matrices of every layer."""
    pipeline_model_parallel_size: Processes = 1
    """Stages the layers are divided into, one after the other."""
    virtual_pipeline_model_parallel_size: Annotated[int, Interval(ge=2, le=1 << 20)] | None = None
    """Pieces of the model that each pipeline stage holds, interleaved: smaller pipeline bubbles for more
    communication. Default: one piece, the plain 1F1B schedule."""
    num_layers_in_first_pipeline_stage: Annotated[int, Interval(ge=1, le=10_000)] | None = None
    """Layers of the first pipeline stage, which holds the embedding too; the stages between share the rest evenly.
    Default: as many as the others."""
    num_layers_in_last_pipeline_stage: Annotated[int, Interval(ge=1, le=10_000)] | None = None
    """Layers of the last pipeline stage, which holds the output layer and the loss too. Default: as many as the
    others."""
    context_parallel_size: Processes = 1
    """Processes that share every sequence, two slices each so that causal attention is balanced."""
    sequence_parallel: bool = False
    """Split norms, dropouts and residual stream along the sequence over the tensor-parallel processes; the result
    is the same, activations take less memory."""
    overlap_grad_reduce: bool = False
    """Reduce gradients over the replicas while the backward pass still runs."""
    overlap_param_gather: bool = False
    """Gather updated weights while the next forward pass already runs; needs `overlap_grad_reduce`."""
    gradient_bucket_size: Annotated[int, Interval(ge=1, le=1 << 40)] | None = None
    """Weights whose gradients are reduced together with `overlap_grad_reduce`: larger buckets use a fast network
    better, smaller ones begin earlier. Default: 40 million, or a million for each replica if that is more."""
    tp_comm_overlap: bool = False
    """Run products while their operands and results are sent between tensor-parallel processes, by Transformer Engine's
    user buffers; needs `sequence_parallel`, and the processes on one machine. Never run so far."""
    cuda_graph_impl: Literal["none", "local"] = "none"
    """Record the kernels of every layer in the first step and launch them together from then on (`local`:
    Megatron-Core's CUDA graphs): less work for the host, more memory. Needs Transformer Engine. Never run so far."""
    recompute_granularity: Literal["none", "selective", "full"] = "none"
    """What is computed again in the backward pass instead of being kept: `none`, the core attention (`selective`),
    or whole layers (`full`)."""
    world_size: Processes
    """Processes of the job. Default: what torchrun started, otherwise tensor x pipeline x context size."""
    platform: Literal["auto", "cpu", "cuda"] = "auto"
    """`cuda` uses NCCL, `cpu` gloo and torch kernels; `auto` takes cuda where a device is there."""
    backend: Literal["auto", "nccl", "gloo", "gloo_for_testing"] = "auto"
    """Library of the collectives: NCCL on GPUs, gloo on the CPU, which is what `auto` takes. `gloo_for_testing` lets
    several processes share one GPU and copies every tensor through the host."""
    threads: Annotated[int, Interval(ge=1, le=4096)] | None = None
    """Threads of each process. Default: OMP_NUM_THREADS where you set it, otherwise the cores the process may use
    divided by the processes on its machine. Under torchrun OMP_NUM_THREADS=1 counts as not set: torchrun sets it."""
    start_timeout_seconds: Timeout = 1800
    """A start fails if a process has not joined after this time, or makes no progress for so long until the first
    step is done."""
    step_timeout_seconds: Timeout = 600
    """A process that makes no progress for so long in a step ends and says which process is silent."""
    evaluation_timeout_seconds: Timeout = 600
    """The same in an evaluation."""
    save_timeout_seconds: Timeout = 1800
    """The same for a whole save."""

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
