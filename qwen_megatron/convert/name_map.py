"""Which tensor of a checkpoint is which in the Hugging Face formats: one table, read in both directions.

Checkpoint names are Megatron-Core's global keys; tensors of the layers are stacked, axis 0 counts the layers.

Legend: V vocabulary, H hidden size, F width of a feed-forward branch, P query heads x head size, G key/value heads x
head size, D head size.
Source of the first series' names and layouts: the released checkpoints; of the later ones': `Qwen2ForCausalLM` and
`Qwen3ForCausalLM` of transformers, which share their names.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from qwen_megatron.config.sections.model import ModelConfig
from qwen_megatron.convert.hf_format import Format
from qwen_megatron.convert.tensor_ops import merge_qkv, split_qkv

LAYERS = "decoder.layers."
EMBEDDING = "embedding.word_embeddings.weight"
OUTPUT_LAYER = "output_layer.weight"
FINAL_NORM = "decoder.final_layernorm.weight"
QKV_BIAS = "decoder.layers.self_attention.linear_qkv.bias"
QUERY_NORM = "decoder.layers.self_attention.q_layernorm.weight"
KEY_NORM = "decoder.layers.self_attention.k_layernorm.weight"


@dataclass(frozen=True)
class Run:
    """Neighbouring rows of a counterpart that are neighbours in the checkpoint's tensor too.

    Attributes:
        tensor: Number of the counterpart, in the order of the names.
        start, stop: Its rows.
    """

    tensor: int
    start: int
    stop: int


def sizes(axes: str, model: ModelConfig) -> tuple[int, ...]:
    """Sizes of axes of the legend."""
    size = {
        "V": model.vocab_size,
        "H": model.hidden_size,
        "F": model.ffn_hidden_size,
        "P": model.num_attention_heads * model.kv_channels,
        "G": model.num_query_groups * model.kv_channels,
        "D": model.kv_channels,
    }
    return tuple(size[axis] for axis in axes)


@dataclass(frozen=True, kw_only=True)
class Entry(abc.ABC):
    """One tensor of a checkpoint and its counterparts.

    Attributes:
        key: Global key in the checkpoint.
        qwen1: Names in the first series' format, none for what it does not have; `{layer}` is the number of the
            layer.
        qwen2: Names in the formats since: qwen2 and qwen3.
    """

    key: str
    qwen1: tuple[str, ...]
    qwen2: tuple[str, ...]

    @property
    def is_layered(self) -> bool:
        """Whether the tensor has one part for each layer."""
        return self.key.startswith(LAYERS)

    @abc.abstractmethod
    def shape(self, model: ModelConfig) -> tuple[int, ...]:
        """Shape in the checkpoint, of one layer, without rows added for the parallel layout."""

    @abc.abstractmethod
    def hf_shapes(self, model: ModelConfig, hf_format: Format) -> tuple[tuple[int, ...], ...]:
        """Shapes of the counterparts, in the order of the names."""

    @abc.abstractmethod
    def runs(self, model: ModelConfig, hf_format: Format) -> Iterator[Run]:
        """Where each row of the checkpoint's tensor stands in the counterparts, in the order of the rows.

        All axes but the first are alike on both sides, so that any box can be read through it.
        """

    def runs_of(self, start: int, stop: int, model: ModelConfig, hf_format: Format) -> list[Run]:
        """Where the rows [start, stop) of the checkpoint's tensor stand in the counterparts, in this order."""
        found, place = [], 0
        for run in self.runs(model, hf_format):
            low, high = max(start, place), min(stop, place + run.stop - run.start)
            if low < high:
                found.append(Run(run.tensor, run.start + low - place, run.start + high - place))
            place += run.stop - run.start
        return found

    @abc.abstractmethod
    def split(self, tensor: torch.Tensor, model: ModelConfig, hf_format: Format) -> tuple[torch.Tensor, ...]:
        """From the checkpoint's tensor to the counterparts, in the order of the names."""

    @abc.abstractmethod
    def merge(self, tensors: Sequence[torch.Tensor], model: ModelConfig) -> torch.Tensor:
        """From the counterparts, of either format, to the checkpoint's tensor."""


@dataclass(frozen=True, kw_only=True)
class Rename(Entry):
    """The same tensor under another name.

    Attributes:
        axes: Its axes, as in the legend.
    """

    axes: str

    def shape(self, model: ModelConfig) -> tuple[int, ...]:
        return sizes(self.axes, model)

    def hf_shapes(self, model: ModelConfig, hf_format: Format) -> tuple[tuple[int, ...], ...]:
        return (self.shape(model),)

    def runs(self, model: ModelConfig, hf_format: Format) -> Iterator[Run]:
        yield Run(0, 0, self.shape(model)[0])

    def split(self, tensor: torch.Tensor, model: ModelConfig, hf_format: Format) -> tuple[torch.Tensor, ...]:
        return (tensor,)

    def merge(self, tensors: Sequence[torch.Tensor], model: ModelConfig) -> torch.Tensor:
        (tensor,) = tensors
        return tensor


@dataclass(frozen=True, kw_only=True)
class QkvMerge(Entry):
    """Query, key and value: interleaved by query group here; [q; k; v] in one tensor or three tensors there.

    Attributes:
        columns: The axes after the rows, as in the legend.
    """

    columns: str

    def shape(self, model: ModelConfig) -> tuple[int, ...]:
        query, key = sizes("PG", model)
        return (query + 2 * key, *sizes(self.columns, model))

    def hf_shapes(self, model: ModelConfig, hf_format: Format) -> tuple[tuple[int, ...], ...]:
        if hf_format is Format.QWEN1:
            return (self.shape(model),)
        return tuple(sizes(rows + self.columns, model) for rows in "PGG")

    def runs(self, model: ModelConfig, hf_format: Format) -> Iterator[Run]:
        query, key = sizes("PG", model)
        # Queries, keys and values are three tensors, or follow each other in one.
        firsts = ((0, 0), (0, query), (0, query + key)) if hf_format is Format.QWEN1 else ((0, 0), (1, 0), (2, 0))
        for group in range(model.num_query_groups):
            for (tensor, first), rows in zip(firsts, (query, key, key), strict=True):
                size = rows // model.num_query_groups
                yield Run(tensor, first + group * size, first + (group + 1) * size)

    def split(self, tensor: torch.Tensor, model: ModelConfig, hf_format: Format) -> tuple[torch.Tensor, ...]:
        parts = split_qkv(
            tensor,
            num_attention_heads=model.num_attention_heads,
            num_query_groups=model.num_query_groups,
            kv_channels=model.kv_channels,
        )
        return (torch.cat(parts),) if hf_format is Format.QWEN1 else parts

    def merge(self, tensors: Sequence[torch.Tensor], model: ModelConfig) -> torch.Tensor:
        if len(tensors) == 1:
            tensors = tensors[0].split(sizes("PGG", model))
        q, k, v = tensors
        return merge_qkv(q, k, v, num_query_groups=model.num_query_groups)


@dataclass(frozen=True, kw_only=True)
class GateUpMerge(Entry):
    """Both branches of the feed-forward layer: [gate; up] here, two tensors there; SiLU is applied to the gate."""

    def shape(self, model: ModelConfig) -> tuple[int, ...]:
        width, hidden = sizes("FH", model)
        return (2 * width, hidden)

    def hf_shapes(self, model: ModelConfig, hf_format: Format) -> tuple[tuple[int, ...], ...]:
        return (sizes("FH", model),) * 2

    def runs(self, model: ModelConfig, hf_format: Format) -> Iterator[Run]:
        (width,) = sizes("F", model)
        yield from (Run(0, 0, width), Run(1, 0, width))

    def split(self, tensor: torch.Tensor, model: ModelConfig, hf_format: Format) -> tuple[torch.Tensor, ...]:
        return tensor.chunk(2)

    def merge(self, tensors: Sequence[torch.Tensor], model: ModelConfig) -> torch.Tensor:
        gate, up = tensors
        return torch.cat((gate, up))


TABLE: tuple[Entry, ...] = (
    Rename(
        key=EMBEDDING,
        qwen1=("transformer.wte.weight",),
        qwen2=("model.embed_tokens.weight",),
        axes="VH",
    ),
    Rename(
        key="decoder.layers.self_attention.linear_qkv.layer_norm_weight",
        qwen1=("transformer.h.{layer}.ln_1.weight",),
        qwen2=("model.layers.{layer}.input_layernorm.weight",),
        axes="H",
    ),
    QkvMerge(
        key="decoder.layers.self_attention.linear_qkv.weight",
        qwen1=("transformer.h.{layer}.attn.c_attn.weight",),
        qwen2=(
            "model.layers.{layer}.self_attn.q_proj.weight",
            "model.layers.{layer}.self_attn.k_proj.weight",
            "model.layers.{layer}.self_attn.v_proj.weight",
        ),
        columns="H",
    ),
    QkvMerge(
        key=QKV_BIAS,
        qwen1=("transformer.h.{layer}.attn.c_attn.bias",),
        qwen2=(
            "model.layers.{layer}.self_attn.q_proj.bias",
            "model.layers.{layer}.self_attn.k_proj.bias",
            "model.layers.{layer}.self_attn.v_proj.bias",
        ),
        columns="",
    ),
    Rename(key=QUERY_NORM, qwen1=(), qwen2=("model.layers.{layer}.self_attn.q_norm.weight",), axes="D"),
    Rename(key=KEY_NORM, qwen1=(), qwen2=("model.layers.{layer}.self_attn.k_norm.weight",), axes="D"),
    Rename(
        key="decoder.layers.self_attention.linear_proj.weight",
        qwen1=("transformer.h.{layer}.attn.c_proj.weight",),
        qwen2=("model.layers.{layer}.self_attn.o_proj.weight",),
        axes="HP",
    ),
    Rename(
        key="decoder.layers.mlp.linear_fc1.layer_norm_weight",
        qwen1=("transformer.h.{layer}.ln_2.weight",),
        qwen2=("model.layers.{layer}.post_attention_layernorm.weight",),
        axes="H",
    ),
    GateUpMerge(
        key="decoder.layers.mlp.linear_fc1.weight",
        qwen1=("transformer.h.{layer}.mlp.w2.weight", "transformer.h.{layer}.mlp.w1.weight"),
        qwen2=("model.layers.{layer}.mlp.gate_proj.weight", "model.layers.{layer}.mlp.up_proj.weight"),
    ),
    Rename(
        key="decoder.layers.mlp.linear_fc2.weight",
        qwen1=("transformer.h.{layer}.mlp.c_proj.weight",),
        qwen2=("model.layers.{layer}.mlp.down_proj.weight",),
        axes="HF",
    ),
    Rename(
        key=FINAL_NORM,
        qwen1=("transformer.ln_f.weight",),
        qwen2=("model.norm.weight",),
        axes="H",
    ),
    Rename(key=OUTPUT_LAYER, qwen1=("lm_head.weight",), qwen2=("lm_head.weight",), axes="VH"),
)

# Buffers that old versions of the model code saved; they follow from the configuration.
IGNORED_SINCE_QWEN2 = ("model.rotary_emb.inv_freq", "model.layers.{layer}.self_attn.rotary_emb.inv_freq")
IGNORED = {
    Format.QWEN1: ("transformer.rotary_emb.inv_freq", "transformer.h.{layer}.attn.rotary_emb.inv_freq"),
    Format.QWEN2: IGNORED_SINCE_QWEN2,
    Format.QWEN3: IGNORED_SINCE_QWEN2,
}


@dataclass(frozen=True)
class Part:
    """An entry of the table for one layer; `layer` is None outside of the layers."""

    entry: Entry
    layer: int | None

    def hf_names(self, hf_format: Format) -> tuple[str, ...]:
        """Names of the tensors it corresponds to."""
        names = self.entry.qwen1 if hf_format is Format.QWEN1 else self.entry.qwen2
        return tuple(name.format(layer=self.layer) for name in names)


def entries(model: ModelConfig) -> tuple[Entry, ...]:
    """The rows of the table that the architecture has: with tied embeddings, say, there is no output matrix."""
    lacks = {
        OUTPUT_LAYER: model.tie_word_embeddings,
        QKV_BIAS: not model.add_qkv_bias,
        QUERY_NORM: not model.qk_layernorm,
        KEY_NORM: not model.qk_layernorm,
    }
    return tuple(entry for entry in TABLE if not lacks.get(entry.key, False))


def parts(model: ModelConfig) -> Iterator[Part]:
    """All parts in the order of the model: embedding, layer by layer, last norm, output."""
    layered = [entry for entry in entries(model) if entry.is_layered]
    for entry in entries(model):
        if not entry.is_layered:
            yield Part(entry, None)
        elif entry is layered[0]:
            yield from (Part(row, layer) for layer in range(model.num_layers) for row in layered)


def hf_tensors(model: ModelConfig, hf_format: Format) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a Hugging Face folder, in the order of the model."""
    return {
        name: shape
        for part in parts(model)
        for name, shape in zip(part.hf_names(hf_format), part.entry.hf_shapes(model, hf_format), strict=True)
    }


def ignored_names(model: ModelConfig, hf_format: Format) -> set[str]:
    """Names that a Hugging Face folder may hold besides."""
    copies = tied_copies(hf_format) if model.tie_word_embeddings else {}
    return {name.format(layer=layer) for name in IGNORED[hf_format] for layer in range(model.num_layers)} | {*copies}


def tied_copies(hf_format: Format) -> dict[str, str]:
    """What may be stored once more where embeddings are tied: name of the copy -> name of what it is a copy of."""
    (embedding, output) = (entry for entry in TABLE if entry.key in (EMBEDDING, OUTPUT_LAYER))
    names = (Part(entry, None).hf_names(hf_format) for entry in (output, embedding))
    return dict(zip(*names, strict=True))
