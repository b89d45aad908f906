"""Compares a checkpoint with a Hugging Face folder layer by layer: of either side one layer is in memory.

Both sides carry the hidden states of the same few tokens from the embedding to the logits, each through code of its
own: the checkpoint through our model, the folder through what `folder_layers` has.

Legend: b batch, s sequence, h hidden size, v vocabulary rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor

from data_tools.io.progress import Progress
from qwen_megatron.convert.activations import Activations, recorded, same_bits
from qwen_megatron.convert.checkpoint_weights import CheckpointWeights
from qwen_megatron.convert.folder_layers import folder_layers
from qwen_megatron.convert.hf_folder import HfFolder
from qwen_megatron.convert.load_hf_weights import box_of, held_shards
from qwen_megatron.convert.name_map import EMBEDDING, FINAL_NORM, OUTPUT_LAYER, Part, parts
from qwen_megatron.model.builder import build_model, unwrapped
from qwen_megatron.parallel.groups import Groups

# Rows of the vocabulary that are turned into fp32 at once; of 4096 channels 128 MiB.
BLOCK_ROWS = 8192


@dataclass(kw_only=True)
class Findings:
    """What differs, as far as has been looked.

    Attributes:
        tolerance: Largest difference that is good: of a logit, and of an activation as a share of the largest one.
        differing: Names of tensors whose bits differ.
        max_difference: Largest absolute difference of any logit.
        first_step: The first step of the forward pass that differs.
    """

    tolerance: float
    differing: list[str] = field(default_factory=list)
    max_difference: float = 0.0
    first_step: str | None = None

    def look(self, name: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
        """Compares the outputs of a step, if none before it differs."""
        difference, largest = (ours - theirs).abs().max(), theirs.abs().max()
        # Written so that a NaN on either side is a difference.
        if self.first_step is None and not difference <= self.tolerance * largest:
            self.first_step = name

    def look_at_logits(self, ours: torch.Tensor, theirs: torch.Tensor) -> None:
        """Compares logits of some rows of the vocabulary."""
        difference = (ours - theirs).abs().max().item()
        # A NaN stays.
        if not difference <= self.max_difference:
            self.max_difference = difference

    @property
    def different_tensors(self) -> tuple[str, ...]:
        """Names of tensors whose bits differ, in the order of the model."""
        return tuple(self.differing)

    @property
    def first_difference(self) -> str | None:
        """The first step that differs; None if the logits agree, for only they count."""
        return None if self.max_difference <= self.tolerance else self.first_step or "logits"


@torch.no_grad()
def compare_layers(
    source: CheckpointWeights, hf: HfFolder, groups: Groups, ids_bs: torch.Tensor, tolerance: float, progress: Progress
) -> Findings:
    """Compares the bits of all tensors, and the logits of tokens.

    Args:
        source: The checkpoint.
        hf: The folder, of the same architecture.
        groups: Of one process.
        ids_bs: [b, s] int64.
        tolerance: Largest absolute difference of a logit that is good.
        progress: Is told the bytes of the tensors that have been compared.
    """
    found = Findings(tolerance=tolerance)
    ours, theirs = CheckpointLayers(source, hf, groups), folder_layers(hf, groups.device)
    by_layer: dict[int | None, list[Part]] = {}
    for part in parts(hf.model):
        by_layer.setdefault(part.layer, []).append(part)
    around = {part.entry.key: part for part in by_layer.pop(None)}
    mine_bsh, other_bsh = embed(source, hf, around[EMBEDDING], ids_bs, found, progress)
    found.look("embedding", mine_bsh, other_bsh)
    for number, layer_parts in by_layer.items():
        assert number is not None
        found.differing += different_tensors(source, hf, layer_parts, progress)
        mine_bsh, steps = ours.layer(layer_parts, mine_bsh)
        other_bsh, other_steps = theirs.layer(number, other_bsh)
        for name, expected in other_steps.items():
            found.look(f"layer {number}, {name}", steps[name], expected)
    found.differing += different_tensors(source, hf, [around[FINAL_NORM]], progress)
    mine_bsh, other_bsh = ours.last_norm(around[FINAL_NORM], mine_bsh), theirs.last_norm(other_bsh)
    found.look("last norm", mine_bsh, other_bsh)
    # With tied embeddings their bits have been compared.
    head, is_new = around.get(OUTPUT_LAYER, around[EMBEDDING]), OUTPUT_LAYER in around
    for rows, mine_vh, other_vh in blocks(source, hf, head, found if is_new else None, progress if is_new else None):
        del rows
        logits = [h.to(w.device) @ w.T for h, w in ((mine_bsh, mine_vh), (other_bsh, other_vh))]
        found.look_at_logits(*logits)
    return found


def different_tensors(
    source: CheckpointWeights, hf: HfFolder, compared: Iterable[Part], progress: Progress
) -> Iterator[str]:
    """Names of tensors whose bits differ, after rounding to the folder's dtype."""
    for part in compared:
        expected = part.entry.split(source.read(part), hf.model, hf.hf_format)
        for name, tensor in zip(part.hf_names(hf.hf_format), expected, strict=True):
            if not same_bits(tensor.to(hf.dtype(part.entry)), hf.read_tensor(name)):
                yield name
            progress.advance(tensor.numel() * hf.dtype(part.entry).itemsize)


def embed(
    source: CheckpointWeights, hf: HfFolder, part: Part, ids_bs: torch.Tensor, found: Findings, progress: Progress
) -> tuple[torch.Tensor, torch.Tensor]:
    """The embedded tokens of both sides, fp32 [b, s, h]."""
    shape = (*ids_bs.shape, hf.model.hidden_size)
    sides = torch.full(shape, torch.nan), torch.full(shape, torch.nan)
    ids = ids_bs.cpu()
    for rows, *matrices in blocks(source, hf, part, found, progress):
        inside = (ids >= rows.start) & (ids < rows.stop)
        for embedded, matrix in zip(sides, matrices, strict=True):
            embedded[inside] = matrix[ids[inside] - rows.start]
    return sides[0].to(ids_bs.device), sides[1].to(ids_bs.device)


def blocks(
    source: CheckpointWeights, hf: HfFolder, part: Part, found: Findings | None, progress: Progress | None
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """Rows of a matrix over the vocabulary from both sides, fp32 [v, h], compared bit for bit on the way.

    Args:
        source: Ours; rounded to the folder's dtype.
        hf: Theirs.
        part: The matrix.
        found: Is told whether they differ; None if they have been compared.
        progress: Is told how much has been compared.
    """
    (name,) = part.hf_names(hf.hf_format)
    dtype, differs = hf.dtype(part.entry), False
    for stored in source.stored_rows(part.entry):
        # A stored piece is read as a whole, whatever is wanted of it.
        mine_vh = source.read(part, stored).to(dtype)
        for start in range(stored.start, stored.stop, BLOCK_ROWS):
            rows = slice(start, min(start + BLOCK_ROWS, stored.stop))
            mine = mine_vh[rows.start - stored.start : rows.stop - stored.start]
            other = hf.read_tensor(name, rows)
            differs = differs or not same_bits(mine, other)
            if progress is not None:
                progress.advance(other.nbytes)
            yield rows, mine.float(), other.float()
    if differs and found is not None:
        found.differing.append(name)


class CheckpointLayers:
    """One layer of our model after the other.

    Args:
        source: The checkpoint.
        hf: The folder, to whose dtypes weights are rounded.
        groups: Of one process.
    """

    def __init__(self, source: CheckpointWeights, hf: HfFolder, groups: Groups):
        self.source, self.hf = source, hf
        # Its vocabulary is not looked at: matrices over it are read in blocks.
        model = dataclasses.replace(source.model, num_layers=1, vocab_size=1, tie_word_embeddings=False)
        self.qwen = unwrapped(build_model(model, groups, precision="fp32")).eval()
        self.shards: dict[str, list[ShardedTensor]] = {}
        for shard in held_shards(self.qwen):
            self.shards.setdefault(shard.key, []).append(shard)
        self.modules: dict[str, torch.nn.Module] = {
            "attention": self.qwen.decoder.layers[0].self_attention,
            "feed-forward": self.qwen.decoder.layers[0].mlp,
        }

    def layer(self, layer_parts: Iterable[Part], hidden_bsh: torch.Tensor) -> tuple[torch.Tensor, Activations]:
        """A layer's output, and those of its steps."""
        self.load(layer_parts)
        with recorded(self.modules, lambda hidden_sbh: hidden_sbh.transpose(0, 1)) as steps:
            hidden_sbh, _ = self.qwen.decoder.layers[0](
                hidden_states=hidden_bsh.transpose(0, 1).contiguous(), attention_mask=None
            )
        return hidden_sbh.transpose(0, 1).contiguous(), steps

    def last_norm(self, part: Part, hidden_bsh: torch.Tensor) -> torch.Tensor:
        """The norm at the end of the stack."""
        self.load([part])
        return self.qwen.decoder.final_layernorm(hidden_bsh)

    def load(self, loaded: Iterable[Part]) -> None:
        """Reads weights into the model, rounded to the precision they have in the folder."""
        for part in loaded:
            values = self.source.read(part).to(self.hf.dtype(part.entry))
            for shard in self.shards[part.entry.key]:
                shard.data.copy_(values[box_of(shard, part.entry.shape(self.source.model))])
