"""Builds this rank's part of a Qwen model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.transformer_block import get_num_layers_to_build

from data_tools.settings.words import show
from qwen_megatron.config.sections.model import ModelConfig
from qwen_megatron.errors import PlatformError
from qwen_megatron.model.dropout import EMBEDDING, HiddenDropout
from qwen_megatron.model.head_kinds import LANGUAGE_MODEL
from qwen_megatron.model.init import initialize_weights
from qwen_megatron.model.layer_spec import Kernels, block_spec, select_kernels
from qwen_megatron.model.megatron_config import transformer_config
from qwen_megatron.model.output_layer import HAS_APEX_GRADIENTS
from qwen_megatron.model.qwen_model import QwenModel
from qwen_megatron.model.rotary import RotarySettings
from qwen_megatron.parallel.groups import Groups
from qwen_megatron.parallel.rng import start_tracker


def rotary_settings(model: ModelConfig) -> RotarySettings:
    """The part of the architecture that fixes positions."""
    return RotarySettings(
        head_size=model.kv_channels,
        base=model.rotary_base,
        native_length=model.seq_length,
        use_dynamic_ntk=model.use_dynamic_ntk,
        use_logn_attn=model.use_logn_attn,
    )


def refuse_beyond(kernels: Kernels, wanted: Mapping[str, tuple[object, object]]) -> None:
    """Refuses settings that the kernels in use would ignore.

    Args:
        kernels: As from `select_kernels`.
        wanted: By setting its value, and the one that asks for nothing.
    Raises:
        PlatformError: naming the first.
    """
    for setting, (value, nothing) in wanted.items():
        if value != nothing and setting not in kernels.offers:
            shown, off = show(value), show(nothing)
            raise PlatformError(
                f"{setting}={shown}: only Transformer Engine's kernels do it, and torch's are in use; install the gpu "
                f"extra on a machine with a GPU, or use {setting}={off}"
            )


def build_model(
    model: ModelConfig,
    groups: Groups,
    *,
    precision: str,
    sequence_parallel: bool = False,
    recompute: str = "none",
    virtual_stage: int | None = None,
    num_virtual_stages: int | None = None,
    layers_in_first_stage: int | None = None,
    layers_in_last_stage: int | None = None,
    seed: int | None = None,
    head: str = LANGUAGE_MODEL,
    deterministic: bool = False,
    fp8: str = "none",
    fp8_first_last_layers_bf16: bool = False,
    cuda_graph_impl: str = "none",
    tp_comm_overlap: bool = False,
) -> torch.nn.Module:
    """This rank's pipeline stage and tensor-parallel share of the model.

    Args:
        model: Architecture.
        groups: Layout; several models may be built on the same groups.
        precision: `bf16` or `fp32`.
        sequence_parallel: Split norms along the sequence.
        recompute: What the backward pass computes again: `none`, `selective` or `full`.
        virtual_stage: Which piece of the stage to build, for the interleaved schedule; None for all of it.
        num_virtual_stages: Pieces of each stage; None for one.
        layers_in_first_stage, layers_in_last_stage: Where they differ from the stages between; None for as many.
        seed: Fill the weights from this seed; None leaves them as they come, to be loaded over.
        head: `language_model`, or `scalar` for one number a token.
        deterministic: Kernels that give the same bits each time.
        fp8: Recipe of the layers' products, or `none`.
        fp8_first_last_layers_bf16: The first and the last layer of the model do without.
        cuda_graph_impl: How the kernels of layers are recorded: `none` or `local`.
        tp_comm_overlap: Products run while tensor-parallel ranks send, through `user_buffers` that are there.
    Returns:
        A `QwenModel`, in a Float16Module for bf16.
    Raises:
        PlatformError: if the implementation cannot run here, or cannot do what the model asks for.
    """
    kernels = select_kernels(model.implementation, groups.device)
    refuse_beyond(
        kernels,
        {
            "training.fp8": (fp8, "none"),
            "parallel.cuda_graph_impl": (cuda_graph_impl, "none"),
            "parallel.tp_comm_overlap": (tp_comm_overlap, False),
        },
    )
    start_tracker(groups, for_graphs=cuda_graph_impl != "none")
    config = transformer_config(
        model,
        groups,
        precision=precision,
        sequence_parallel=sequence_parallel,
        num_virtual_stages=num_virtual_stages,
        layers_in_first_stage=layers_in_first_stage,
        layers_in_last_stage=layers_in_last_stage,
        recompute=recompute,
        deterministic=deterministic,
        fp8=fp8,
        fp8_first_last_layers_bf16=fp8_first_last_layers_bf16,
        cuda_graph_impl=cuda_graph_impl,
        tp_comm_overlap=tp_comm_overlap,
        # torch's linears are Megatron-Core's, which need NVIDIA apex for it.
        fuses_weight_gradients=groups.device.type != "cpu" and (kernels.fuses_weight_gradients or HAS_APEX_GRADIENTS),
    )
    tp_size = groups.tp.size()
    num_layers = get_num_layers_to_build(config, virtual_stage, groups.pp.rank())
    embedding_dropout = None
    if model.hidden_dropout:
        embedding_dropout = HiddenDropout(
            model.hidden_dropout,
            layer=0,
            place=EMBEDDING,
            context_group=groups.cp,
            split_group=groups.tp if sequence_parallel else None,
        )
    qwen: torch.nn.Module = QwenModel(
        head=head,
        num_tokens_in_vocabulary=model.vocab_size,
        fuses_loss=model.loss_implementation != "unfused",
        embedding_dropout=embedding_dropout,
        config=config,
        transformer_layer_spec=block_spec(
            kernels, rotary_settings(model), num_layers, model.hidden_dropout, qk_layernorm=model.qk_layernorm
        ),
        vocab_size=-(-model.vocab_size // tp_size) * tp_size,
        max_sequence_length=model.seq_length,
        pre_process=groups.is_first_stage and virtual_stage in (None, 0),
        post_process=groups.is_last_stage and (num_virtual_stages is None or virtual_stage == num_virtual_stages - 1),
        vp_stage=virtual_stage,
        # A scalar head shares nothing with the embedding.
        share_embeddings_and_output_weights=model.tie_word_embeddings and head == LANGUAGE_MODEL,
        # Positions enter in the core attention: see QwenCoreAttention.
        position_embedding_type="none",
        pg_collection=groups.collection,
    )
    qwen.to(groups.device)
    if precision == "bf16":
        qwen = Float16Module(config, qwen)
    if seed is not None:
        initialize_weights(unwrapped(qwen), seed=seed, std=model.init_method_std, num_layers=model.num_layers)
    return qwen


def unwrapped(model: torch.nn.Module) -> QwenModel:
    """The `QwenModel` inside precision and data-parallel wrappers."""
    while not isinstance(model, QwenModel):
        model = cast(torch.nn.Module, model.module)
    return model
