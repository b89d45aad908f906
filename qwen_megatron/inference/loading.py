"""A model in one process, outside of any training job: for logits, generation and verification."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from qwen_megatron.checkpoint.finite import check_weights
from qwen_megatron.checkpoint.load import checkpoint_in, load_model, verify_checkpoint
from qwen_megatron.checkpoint.state import saved_model_config
from qwen_megatron.convert.hf_folder import HfFolder
from qwen_megatron.convert.hf_paths import is_hf_folder
from qwen_megatron.convert.load_hf_weights import load_hf_weights
from qwen_megatron.errors import CheckpointError, ConfigError
from qwen_megatron.model.builder import build_model, unwrapped
from qwen_megatron.model.head_kinds import LANGUAGE_MODEL
from qwen_megatron.model.qwen_model import QwenModel
from qwen_megatron.parallel.groups import Groups, build_groups, destroy_groups, start_process_group
from qwen_megatron.platforms import get_platform

TIMEOUT_SECONDS = 600.0


@contextlib.contextmanager
def single_process(platform_name: str = "auto") -> Iterator[Groups]:
    """Groups of one rank, for as long as the context is open; products of bf16 matrices are the platform's."""
    with (
        inference_groups(platform_name=platform_name) as groups,
        get_platform(platform_name).products(torch.bfloat16),
    ):
        yield groups


@contextlib.contextmanager
def inference_groups(
    *, tensor_size: int | None = 1, pipeline_size: int = 1, platform_name: str = "auto"
) -> Iterator[Groups]:
    """Groups of a layout over the processes of this job, for as long as the context is open.

    Args:
        tensor_size: Tensor-parallel ranks; None for all ranks of a pipeline stage.
        pipeline_size: Pipeline stages.
        platform_name: `auto`, `cpu` or `cuda`.
    Raises:
        ConfigError: if the processes of the job do not divide into it.
        PlatformError: if the machine cannot do it.
    """
    platform = get_platform(platform_name)
    platform.prepare()
    device = start_process_group(platform, TIMEOUT_SECONDS)
    try:
        world_size = dist.get_world_size()
        tensor_size = max(1, world_size // pipeline_size) if tensor_size is None else tensor_size
        if world_size % (tensor_size * pipeline_size):
            raise ConfigError(
                f"{world_size} {'process is' if world_size == 1 else 'processes are'} no multiple of {tensor_size} "
                f"tensor-parallel x {pipeline_size} pipeline-parallel ones; start {tensor_size * pipeline_size} with "
                f"torchrun --nproc-per-node={tensor_size * pipeline_size}"
            )
        groups = build_groups(
            tensor_model_parallel_size=tensor_size,
            pipeline_model_parallel_size=pipeline_size,
            device=device,
            timeout_seconds=TIMEOUT_SECONDS,
        )
        yield groups
    finally:
        destroy_groups()


def load_for_inference(
    source: Path,
    groups: Groups,
    *,
    precision: str = "fp32",
    name: str | None = None,
    allow_nonfinite: bool = False,
    head: str = LANGUAGE_MODEL,
) -> QwenModel:
    """This rank's part of the model of a checkpoint or of a Hugging Face folder, in evaluation mode.

    On torch's kernels, which take a key/value cache, and windows; nothing is dropped.

    Args:
        source: An `iter_NNNNNNN` folder, written on any layout, a run's folder, whose newest checkpoint is taken, or a
            folder with config.json and safetensors.
        groups: Layout: any whose sizes divide the model.
        precision: `fp32` or `bf16`.
        name: Of the model, where a checkpoint holds several.
        allow_nonfinite: Take weights that hold NaN or infinity too.
        head: `language_model`, or `scalar` for a reward model, which is in a checkpoint alone.
    Raises:
        CheckpointError: if the source is missing, damaged or none of these, has another head, or its weights are no
            numbers.
    """
    if is_hf_folder(source):
        if head != LANGUAGE_MODEL:
            raise CheckpointError(f"{source}: is a Hugging Face folder, which has no {head} head; name a checkpoint")
        folder = HfFolder(source)
        config = dataclasses.replace(folder.model, implementation="torch", attention_dropout=0.0)
        model = build_model(config, groups, precision=precision)
        load_hf_weights(folder, unwrapped(model))
    else:
        source = checkpoint_in(source)
        verify_checkpoint(source)
        saved = saved_model_config(source, name)
        config = dataclasses.replace(saved, implementation="torch", hidden_dropout=0.0, attention_dropout=0.0)
        model = build_model(config, groups, precision=precision, head=head)
        load_model(source, unwrapped(model), name)
    if not allow_nonfinite:
        check_weights(unwrapped(model), source)
    return unwrapped(model).eval()


@torch.no_grad()
def logits(model: QwenModel, tokens_bs: torch.Tensor) -> torch.Tensor:
    """Logits of the vocabulary, padding rows left out.

    Args:
        model: On one rank, in evaluation mode.
        tokens_bs: [b, s] int64.
    Returns:
        [b, s, v] fp32, v = `vocab_size`.
    """
    positions_bs = torch.arange(tokens_bs.size(1), device=tokens_bs.device).expand_as(tokens_bs)
    output_bsv = model(tokens_bs, positions_bs, None)
    return output_bsv[..., : model.num_tokens_in_vocabulary].float()
