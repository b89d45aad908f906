"""From our configuration to Megatron-Core's TransformerConfig."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core.transformer.transformer_config import TransformerConfig

from qwen_megatron.config.sections.model import ModelConfig
from qwen_megatron.parallel.groups import Groups

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}

RECOMPUTE: dict[str, dict[str, Any]] = {
    "none": {},
    "selective": {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]},
    "full": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
}


def leave_uninitialized(weight: torch.Tensor) -> None:
    """Initialiser that writes nothing: `model.init` fills every weight afterwards."""


def transformer_config(
    model: ModelConfig,
    groups: Groups,
    *,
    precision: str,
    sequence_parallel: bool = False,
    num_virtual_stages: int | None = None,
    layers_in_first_stage: int | None = None,
    layers_in_last_stage: int | None = None,
    recompute: str = "none",
    deterministic: bool = False,
    fp8: str = "none",
    fp8_first_last_layers_bf16: bool = False,
    cuda_graph_impl: str = "none",
    tp_comm_overlap: bool = False,
    fuses_weight_gradients: bool = False,
) -> TransformerConfig:
    """The architecture and layout in Megatron-Core's terms.

    Args:
        model: Architecture.
        groups: Layout of this job.
        precision: `bf16` or `fp32`: the dtype of weights and activations.
        sequence_parallel: Split norms and dropouts along the sequence.
        num_virtual_stages: Pieces of the model on each pipeline stage, for the interleaved schedule; None for one.
        layers_in_first_stage, layers_in_last_stage: Where they differ from the stages between; None for as many.
        recompute: `none`, `selective` (core attention) or `full` (whole layers).
        deterministic: The same layout gives the same bits.
        fp8: Recipe, or `none`.
        fp8_first_last_layers_bf16: The first and the last layer of the model do without.
        cuda_graph_impl: How the kernels of layers are recorded: `none` or `local`.
        tp_comm_overlap: Products run while tensor-parallel ranks send.
        fuses_weight_gradients: The layers' linears add the gradients of their weights to the fp32 buffer themselves.
    """
    dtype = DTYPES[precision]
    on_cpu = groups.device.type == "cpu"
    sends_by_nccl = dist.get_backend(groups.pp) == "nccl"
    return TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.num_query_groups,
        kv_channels=model.kv_channels,
        # Ours: see model.dropout. Megatron-Core's masks depend on the rank.
        hidden_dropout=0.0,
        attention_dropout=model.attention_dropout,
        normalization="RMSNorm",
        layernorm_epsilon=model.layernorm_epsilon,
        add_bias_linear=False,
        add_qkv_bias=model.add_qkv_bias,
        # Lets Megatron-Core sum the gradients of these norms over the heads of all tensor-parallel ranks.
        qk_layernorm=model.qk_layernorm,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        # Keeps the marks that Megatron-Core sets with a weight (the gradient norm counts by them) and draws nothing.
        perform_initialization=True,
        init_method=leave_uninitialized,
        output_layer_init_method=leave_uninitialized,
        bf16=precision == "bf16",
        params_dtype=dtype,
        pipeline_dtype=dtype,
        tensor_model_parallel_size=groups.tp.size(),
        pipeline_model_parallel_size=groups.pp.size(),
        virtual_pipeline_model_parallel_size=num_virtual_stages,
        num_layers_in_first_pipeline_stage=layers_in_first_stage,
        num_layers_in_last_pipeline_stage=layers_in_last_stage,
        context_parallel_size=groups.cp.size(),
        sequence_parallel=sequence_parallel,
        # Gradients are sums over tokens, divided once by the tokens of the whole batch: independent of the layout.
        calculate_per_token_loss=True,
        # gloo still reads a sent tensor when the schedule would already have freed it, and has no batched send.
        deallocate_pipeline_outputs=sends_by_nccl,
        batch_p2p_comm=sends_by_nccl and num_virtual_stages is None,
        overlap_p2p_comm=num_virtual_stages is not None,
        # A wait of the host after every transfer, for a fault of old torch; from 2.8 on, which we need, there is none.
        batch_p2p_sync=False,
        deterministic_mode=deterministic,
        **RECOMPUTE[recompute],
        # Compiled fusions: their first step costs minutes on a CPU.
        bias_dropout_fusion=not on_cpu,
        bias_activation_fusion=not on_cpu,
        # The layer spec's own, in Megatron-Core's words.
        use_te_activation_func=on_cpu,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
        gradient_accumulation_fusion=fuses_weight_gradients,
        **({} if fp8 == "none" else {"fp8": "hybrid", "fp8_recipe": fp8}),
        first_last_layers_bf16=fp8_first_last_layers_bf16,
        cuda_graph_impl=cuda_graph_impl,
        # Whole layers.
        cuda_graph_scope=[],
        tp_comm_overlap=tp_comm_overlap,
    )
