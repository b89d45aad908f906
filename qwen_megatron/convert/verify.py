"""Compares a checkpoint with a Hugging Face folder: every tensor bit for bit, then logits in fp32.

Legend: b batch, s sequence, h hidden size, v vocabulary.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories

from data_tools.io.progress import progress_bar
from qwen_megatron.checkpoint.load import checkpoint_in, existing
from qwen_megatron.checkpoint.sharded_state import fill, sharded_weights
from qwen_megatron.checkpoint.storage import load_tensors
from qwen_megatron.config.arithmetic.parameters import count_parameters
from qwen_megatron.config.sections.model import SHAPE, STRETCHES, ModelConfig
from qwen_megatron.convert.activations import Activations, first_difference, recorded
from qwen_megatron.convert.available_memory import available_bytes
from qwen_megatron.convert.checkpoint_weights import CheckpointWeights
from qwen_megatron.convert.config_file import read_json
from qwen_megatron.convert.hf_folder import CONFIG, GENERATION_CONFIG, HfFolder
from qwen_megatron.convert.layerwise import compare_layers, different_tensors
from qwen_megatron.convert.load_hf_weights import load_hf_weights
from qwen_megatron.convert.name_map import Format, parts
from qwen_megatron.errors import CheckpointError
from qwen_megatron.model.builder import build_model, unwrapped
from qwen_megatron.model.qwen_model import QwenModel
from qwen_megatron.parallel.groups import Groups

DEFAULT_TOLERANCE = 1e-4
NUM_SEQUENCES = 2
LONGEST_SEQUENCE = 64
# A model in memory takes its weights and, while they are read, some of them once more.
READING = 1.25
GIB = 2.0**30

log = logging.getLogger(__name__)

# What both sides must agree on; what a format has no place for is left out.
ARCHITECTURE = (*SHAPE, "seq_length", "rotary_base", "layernorm_epsilon")


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a comparison found.

    Attributes:
        num_tensors: Tensors compared bit for bit; their names and shapes are exactly those of the configuration.
        different_tensors: Names of those that differ, in the order of the model.
        max_difference: Largest absolute difference of any logit.
        tolerance: Largest difference that is good.
        first_difference: The first step of the forward pass that differs; None if the logits agree.
        num_tokens: Tokens whose logits were compared.
        by_layers: Whether one layer at a time was in memory.
    """

    num_tensors: int
    different_tensors: tuple[str, ...]
    max_difference: float
    tolerance: float
    first_difference: str | None
    num_tokens: int
    by_layers: bool

    @property
    def is_good(self) -> bool:
        """Whether both sides are the same model."""
        return not self.different_tensors and self.first_difference is None


def verify(
    checkpoint: Path,
    folder: Path,
    groups: Groups,
    *,
    tolerance: float = DEFAULT_TOLERANCE,
    name: str | None = None,
    by_layers: bool | None = None,
) -> Report:
    """Compares a checkpoint with a Hugging Face folder.

    A qwen2 or qwen3 folder is run by transformers. A qwen1 folder can be run elsewhere only by custom code, so it is
    imported again and run by our model; by layers, in plain torch. Both sides compute in fp32, from the weights as the
    folder holds them: rounded to its dtype; the master weights if it has fp32 weights and the model was trained in
    bf16. Sequences are not longer than the native context, where all formats mean the same. One model at a time is in
    memory, or one layer of both.

    Args:
        checkpoint: An `iter_NNNNNNN` folder, or a run's folder, whose newest checkpoint is taken.
        folder: A Hugging Face folder; no code in it is run.
        groups: Of one process.
        tolerance: Largest absolute difference of a logit that is good.
        name: Of the model, where the checkpoint holds several.
        by_layers: Hold one layer at a time in memory; None where the model would not fit.
    Raises:
        CheckpointError: if one of the two cannot be read, or they describe different architectures.
    """
    hf = HfFolder(existing(folder))
    checkpoint = checkpoint_in(checkpoint)
    source = CheckpointWeights(checkpoint, name)
    check_same_architecture(source.model, hf, checkpoint)
    first = next(parts(hf.model)).entry
    if source.has_masters and hf.dtype(first) is torch.float32 and source.dtype(first) is not torch.float32:
        source = source.masters()
    ids_bs = sample_ids(hf.model).to(groups.device)
    if by_layers is None:
        by_layers = not fits_in_memory(hf.model)
    with progress_bar(f"verifying {folder.name}", hf.size_bytes) as progress:
        if by_layers:
            found = compare_layers(source, hf, groups, ids_bs, tolerance, progress)
            different, difference, first_step = found.different_tensors, found.max_difference, found.first_difference
        else:
            different = tuple(different_tensors(source, hf, parts(hf.model), progress))
            difference, first_step = compare_models(source, hf, groups, ids_bs, tolerance)
    return Report(
        num_tensors=len(hf.tensors),
        different_tensors=different,
        max_difference=difference,
        tolerance=tolerance,
        first_difference=first_step,
        num_tokens=ids_bs.numel(),
        by_layers=by_layers,
    )


def fits_in_memory(model: ModelConfig) -> bool:
    """Whether the model can be held in fp32; it is said if not."""
    needed, available = round(4 * READING * count_parameters(model)), available_bytes()
    if needed <= available:
        return True
    log.warning(
        "the model takes about %.1f GiB in fp32 and %.1f are free: it is compared layer by layer",
        needed / GIB,
        available / GIB,
    )
    return False


def compare_models(
    source: CheckpointWeights, hf: HfFolder, groups: Groups, ids_bs: torch.Tensor, tolerance: float
) -> tuple[float, str | None]:
    """The largest difference of a logit, and the first step that differs; whole models, one after the other."""
    ours = run_checkpoint(source, hf, groups, ids_bs)
    theirs = run_import(hf, groups, ids_bs) if hf.hf_format is Format.QWEN1 else run_transformers(hf, groups, ids_bs)
    difference = (ours["logits"] - theirs["logits"]).abs().max().item()
    # Written so that a NaN on either side is a failure.
    agree = difference <= tolerance
    return difference, None if agree else first_difference(ours, theirs, tolerance)


def check_same_architecture(model: ModelConfig, hf: HfFolder, checkpoint: Path) -> None:
    """Compares the two configurations.

    Raises:
        CheckpointError: naming the settings that differ.
    """
    names = ARCHITECTURE + (STRETCHES if hf.hf_format.has_stretches else ())
    different = [
        f"model.{name} is {getattr(model, name)} in {checkpoint} and {getattr(hf.model, name)} in {hf.path}"
        for name in names
        if getattr(model, name) != getattr(hf.model, name)
    ]
    if different:
        raise CheckpointError("two different architectures: " + "; ".join(different))


def sample_ids(model: ModelConfig) -> torch.Tensor:
    """Fixed pseudo-random token ids, int64 [b, s]."""
    generator = torch.Generator().manual_seed(0)
    shape = (NUM_SEQUENCES, min(LONGEST_SEQUENCE, model.seq_length))
    return torch.randint(model.vocab_size, shape, generator=generator)


def run_checkpoint(source: CheckpointWeights, hf: HfFolder, groups: Groups, ids_bs: torch.Tensor) -> Activations:
    """Our model with the checkpoint's weights, read by Megatron-Core's loader rather than the exporter's reader."""
    qwen = unwrapped(build_model(source.model, groups, precision="fp32")).eval()
    state = sharded_weights(qwen, source.prefix)
    fill(qwen, load_tensors({"model": state}, source.folder)["model"], source.folder)
    round_weights(qwen, hf)
    return run_ours(qwen, ids_bs)


@torch.no_grad()
def round_weights(qwen: QwenModel, hf: HfFolder) -> None:
    """Rounds fp32 weights to the precision they have in the folder, in place."""
    state = sharded_weights(qwen)
    apply_factories(state)
    for shard in nested_values(state):
        if isinstance(shard, ShardedTensor) and shard.data is not None:
            shard.data.copy_(shard.data.to(hf.dtypes[shard.key]))


def run_import(hf: HfFolder, groups: Groups, ids_bs: torch.Tensor) -> Activations:
    """Our model with the folder's weights."""
    qwen = unwrapped(build_model(hf.model, groups, precision="fp32")).eval()
    load_hf_weights(hf, qwen)
    return run_ours(qwen, ids_bs)


@torch.no_grad()
def run_ours(qwen: QwenModel, ids_bs: torch.Tensor) -> Activations:
    """Activations of our model."""
    modules = {"embedding": qwen.embedding}
    for number, layer in enumerate(qwen.decoder.layers):
        modules |= {f"layer {number}, attention": layer.self_attention, f"layer {number}, feed-forward": layer.mlp}
    modules["last norm"] = qwen.decoder.final_layernorm
    positions_bs = torch.arange(ids_bs.size(1), device=ids_bs.device).expand_as(ids_bs)
    with recorded(modules, lambda hidden_sbh: hidden_sbh.transpose(0, 1)) as activations:
        logits_bsv = qwen(ids_bs, positions_bs, None)[..., : qwen.num_tokens_in_vocabulary]
    return activations | {"logits": logits_bsv.float().cpu()}


@torch.no_grad()
def run_transformers(hf: HfFolder, groups: Groups, ids_bs: torch.Tensor) -> Activations:
    """Activations of transformers' model of a qwen2 or qwen3 folder."""
    import transformers

    # It reads these by itself, and takes them as they are.
    for path in (hf.path / CONFIG, hf.path / GENERATION_CONFIG):
        if path.exists():
            read_json(path)
    transformers.utils.logging.disable_progress_bar()
    kind = transformers.Qwen3ForCausalLM if hf.hf_format is Format.QWEN3 else transformers.Qwen2ForCausalLM
    model = kind.from_pretrained(
        hf.path,
        dtype=torch.float32,
        attn_implementation="sdpa",
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
    )
    model = model.to(groups.device).eval()
    modules = {"embedding": model.model.embed_tokens}
    for number, layer in enumerate(model.model.layers):
        modules |= {f"layer {number}, attention": layer.self_attn, f"layer {number}, feed-forward": layer.mlp}
    modules["last norm"] = model.model.norm
    with recorded(modules, lambda hidden_bsh: hidden_bsh) as activations:
        logits_bsv = model(ids_bs, use_cache=False).logits
    return activations | {"logits": logits_bsv.float().cpu()}
