"""From a checkpoint of any layout to a Hugging Face folder; tensors are streamed, the model is never built."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from data_tools.io.atomic_file import write_atomically
from data_tools.io.progress import Progress, progress_bar
from data_tools.io.read_ahead import read_ahead
from data_tools.tokenizer.qwen import NUM_TOKENS
from qwen_megatron.checkpoint.load import checkpoint_in
from qwen_megatron.checkpoint.verified_beside import verified_beside
from qwen_megatron.config.sections.model import ModelConfig
from qwen_megatron.convert.checkpoint_weights import CheckpointWeights
from qwen_megatron.convert.hf_config import fitting_format, write_config, write_generation_config
from qwen_megatron.convert.hf_tokenizer import write_tokenizer
from qwen_megatron.convert.model_card import CARD, model_card
from qwen_megatron.convert.name_map import TABLE, Format, parts
from qwen_megatron.convert.output_folder import check_replaceable, output_folder
from qwen_megatron.convert.shards import PlannedTensor, plan_shards, write_index, write_shards
from qwen_megatron.convert.weights import FiniteWeights, WeightSource, one_thread

log = logging.getLogger(__name__)

DEFAULT_SHARD_BYTES = 5_000_000_000
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def to_hf(
    checkpoint: Path,
    out: Path,
    *,
    hf_format: Format | None = None,
    dtype: str | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    overwrite: bool = False,
    name: str | None = None,
    allow_nonfinite: bool = False,
) -> Format:
    """Writes a Hugging Face folder: weights, configuration, model card and, for Qwen's tokens, the tokenizer.

    While one layer's weight, or one matrix outside of the layers, is written, the next two are read, and every byte of
    the checkpoint is verified; if one is wrong, there will be no folder.

    Args:
        checkpoint: An `iter_NNNNNNN` folder, or a run's folder, whose newest checkpoint is taken.
        out: The folder to make.
        hf_format: Format to write; None for the one that fits the architecture (`fitting_format`).
        dtype: `bf16`: the model's weights; `fp32`: the master weights of the optimizer where the checkpoint has them;
            None: the model's weights in the dtype they are stored in.
        max_shard_bytes: Most bytes of tensors in a file.
        overwrite: Replace a model that is already in `out`.
        name: Of the model, where the checkpoint holds several.
        allow_nonfinite: Take weights that hold NaN or infinity too.
    Returns:
        The format that was written.
    Raises:
        CheckpointError: if the checkpoint is damaged, the format cannot express the model, or `out` exists.
        DataError: if the vocabulary for the tokenizer files is not installed.
    """
    check_replaceable(out, overwrite=overwrite)
    checkpoint = checkpoint_in(checkpoint)
    with verified_beside(checkpoint) as verification:
        stored = CheckpointWeights(checkpoint, name, verification=verification)
        hf_format = hf_format or fitting_format(stored.model)
        if dtype == "fp32" and stored.has_masters:
            stored = stored.masters()
        source: WeightSource = stored if allow_nonfinite else FiniteWeights(stored, checkpoint)
        target = DTYPES[dtype] if dtype is not None else source.dtype(TABLE[0])
        has_qwen_tokens = stored.has_qwen_tokens
        config = write_config(source.model, hf_format, target, has_qwen_tokens=has_qwen_tokens)
        warn_of_loss(source.model, hf_format)
        if source.model.seq_length != stored.configured_context:
            log.warning(
                "max_position_embeddings is %d, the context it was trained on; model.seq_length was %d",
                source.model.seq_length,
                stored.configured_context,
            )
        planned = planned_tensors(source, hf_format, target if dtype is not None else None)
        shards = plan_shards(planned, max_shard_bytes)
        with output_folder(out, overwrite=overwrite) as folder:
            write_weights(folder, source, hf_format, planned, shards, f"writing {out.name}")
            write_index(folder, shards, planned)
            write_json(folder / "config.json", config)
            write_json(folder / "generation_config.json", write_generation_config(has_qwen_tokens=has_qwen_tokens))
            write_atomically(folder / CARD, model_card(checkpoint, out.name, source.model, hf_format).encode())
            if has_qwen_tokens:
                write_tokenizer(folder, source.model, hf_format)
            # Before the folder gets its name.
            verification.wait()
    if not has_qwen_tokens:
        warn_of_tokenizer(source.model)
    return hf_format


def write_weights(
    folder: Path,
    source: WeightSource,
    hf_format: Format,
    planned: dict[str, PlannedTensor],
    shards: dict[str, list[str]],
    title: str,
) -> None:
    """Writes the weights, read and converted ahead, with a progress bar."""
    with (
        progress_bar(title, sum(tensor.size_bytes for tensor in planned.values())) as progress,
        contextlib.closing(read_ahead(converted_tensors(source, hf_format, planned, progress), 1)) as tensors,
    ):
        write_shards(folder, shards, planned, tensors)


def warn_of_loss(model: ModelConfig, hf_format: Format) -> None:
    """Says what a format has no place for."""
    lost = [name for name in ("use_dynamic_ntk", "use_logn_attn") if getattr(model, name)]
    if lost and not hf_format.has_stretches:
        log.warning(
            "%s cannot be expressed in the %s format: beyond %d tokens its model will differ from this one",
            " and ".join(lost),
            hf_format.value,
            model.seq_length,
        )


def warn_of_tokenizer(model: ModelConfig) -> None:
    """Says why there are no tokenizer files."""
    reason = "the corpora it was trained on were not made with Qwen's tokenizer"
    if model.vocab_size < NUM_TOKENS:
        reason = f"vocab_size={model.vocab_size} is smaller than Qwen's {NUM_TOKENS}"
    log.warning("%s: no tokenizer files written; add those of its own tokenizer", reason)


def planned_tensors(source: WeightSource, hf_format: Format, dtype: torch.dtype | None) -> dict[str, PlannedTensor]:
    """Every tensor to write, in the order of the model; `dtype` None keeps each as it is stored."""
    return {
        name: PlannedTensor(shape, dtype or source.dtype(part.entry))
        for part in parts(source.model)
        for name, shape in zip(part.hf_names(hf_format), part.entry.hf_shapes(source.model, hf_format), strict=True)
    }


def converted_tensors(
    source: WeightSource, hf_format: Format, planned: dict[str, PlannedTensor], progress: Progress
) -> Iterator[tuple[str, torch.Tensor]]:
    """Reads and converts the tensors of a folder one part at a time, in the order of the model."""
    with one_thread():
        for part in parts(source.model):
            tensors = part.entry.split(source.read(part), source.model, hf_format)
            for name, tensor in zip(part.hf_names(hf_format), tensors, strict=True):
                tensor = tensor.to(planned[name].dtype)
                # Before it is handed out: whoever takes the last one does not ask for another.
                progress.advance(planned[name].size_bytes)
                yield name, tensor


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON object with sorted keys."""
    write_atomically(path, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())
