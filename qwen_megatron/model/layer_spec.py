"""Which modules a Qwen layer is made of, on torch kernels or on Transformer Engine's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from megatron.core.extensions import transformer_engine as te
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules

from qwen_megatron.errors import PlatformError
from qwen_megatron.model.attention import QwenCoreAttention
from qwen_megatron.model.dropout import DropoutLayer
from qwen_megatron.model.engine_attention import EngineAttention
from qwen_megatron.model.layer import QwenLayer
from qwen_megatron.model.linear import ColumnLinear, RowLinear, SwiGlu
from qwen_megatron.model.norm import RmsNorm
from qwen_megatron.model.rotary import RotarySettings
from qwen_megatron.model.torch_attention import TorchAttention


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """Modules of one implementation.

    Attributes:
        norm: Normalisation before attention and MLP where it stands alone, and at the end of the stack.
        norm_is_fused: The column-parallel linears contain their normalisation.
        norm_linear: Column-parallel linear, with normalisation if fused.
        linear: Row-parallel linear.
        attention: Core attention without positions.
        attention_takes: What it takes: of an `AttentionContext` `documents`, `dropout`, `cache`; and `windows`.
        fuses_weight_gradients: On a GPU its linears can add to the fp32 buffer of a weight's gradient themselves.
        offers: Settings that have an effect with these modules only.
    """

    norm: type
    norm_is_fused: bool
    norm_linear: type
    linear: type
    attention: Callable[..., torch.nn.Module]
    attention_takes: frozenset[str]
    fuses_weight_gradients: bool = False
    offers: frozenset[str] = frozenset()


# Transformer Engine's linear owns the norm before it; checkpoints carry its names.
FUSED_NAMES = {
    "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
}


TORCH = Kernels(
    norm=RmsNorm,
    norm_is_fused=False,
    norm_linear=ColumnLinear,
    linear=RowLinear,
    attention=TorchAttention,
    attention_takes=frozenset({"documents", "dropout", "cache", "windows"}),
)


def select_kernels(implementation: str, device: torch.device) -> Kernels:
    """Kernels for `model.implementation`.

    Args:
        implementation: `torch`, `transformer_engine`, or `auto`: Transformer Engine where it imports and CUDA is there.
        device: Where the model will live.
    Raises:
        PlatformError: if Transformer Engine is asked for and cannot run here.
    """
    # Without Transformer Engine, Megatron-Core's names for it are mocks that silently return mocks.
    available = te.HAVE_TE and device.type == "cuda"
    if implementation == "torch" or (implementation == "auto" and not available):
        return TORCH
    if not available:
        problem = f"has no kernels for the device {device.type}" if te.HAVE_TE else "does not import"
        raise PlatformError(
            f"model.implementation=transformer_engine: Transformer Engine {problem}; "
            "use model.implementation=torch, or install the gpu extra on a machine with a GPU"
        )
    return Kernels(
        norm=te.TENorm,
        norm_is_fused=True,
        norm_linear=te.TELayerNormColumnParallelLinear,
        linear=te.TERowParallelLinear,
        attention=functools.partial(EngineAttention, kernel=te.TEDotProductAttention),
        attention_takes=frozenset({"documents", "dropout"}),
        fuses_weight_gradients=True,
        offers=frozenset({"training.fp8", "parallel.cuda_graph_impl", "parallel.tp_comm_overlap"}),
    )


def layer_spec(
    kernels: Kernels, rotary: RotarySettings, hidden_dropout: float, *, qk_layernorm: bool = False
) -> ModuleSpec:
    """One Qwen layer; checkpoints have the same parameter names with every implementation."""
    core = {"kernel": kernels.attention, "takes": kernels.attention_takes, "rotary": rotary}
    norm = IdentityOp if kernels.norm_is_fused else kernels.norm
    attention = ModuleSpec(
        module=SelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(
            linear_qkv=kernels.norm_linear,
            core_attention=ModuleSpec(module=QwenCoreAttention, params=core),
            linear_proj=kernels.linear,
            q_layernorm=kernels.norm if qk_layernorm else IdentityOp,
            k_layernorm=kernels.norm if qk_layernorm else IdentityOp,
        ),
    )
    mlp = ModuleSpec(
        module=MLP,
        submodules=MLPSubmodules(linear_fc1=kernels.norm_linear, linear_fc2=kernels.linear, activation_func=SwiGlu),
    )
    # Without dropout nothing of it is there.
    return ModuleSpec(
        module=DropoutLayer if hidden_dropout else QwenLayer,
        params={"dropout": hidden_dropout} if hidden_dropout else {},
        submodules=TransformerLayerSubmodules(
            input_layernorm=norm,
            self_attention=attention,
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=norm,
            mlp=mlp,
            mlp_bda=get_bias_dropout_add,
            sharded_state_dict_keys_map={} if kernels.norm_is_fused else FUSED_NAMES,
        ),
    )


def block_spec(
    kernels: Kernels,
    rotary: RotarySettings,
    num_layers: int,
    hidden_dropout: float = 0.0,
    *,
    qk_layernorm: bool = False,
) -> TransformerBlockSubmodules:
    """The layers of one pipeline stage and the norm at the end of the stack.

    The norm is named here because Megatron-Core would choose one of its own, which refuses sequence parallelism.

    Args:
        kernels: As from `select_kernels`.
        rotary: Positions of the core attention.
        num_layers: Layers on this stage.
        hidden_dropout: Probability, after attention and feed-forward layer.
        qk_layernorm: Normalise each head of queries and keys before they are rotated.
    """
    layer = layer_spec(kernels, rotary, hidden_dropout, qk_layernorm=qk_layernorm)
    return TransformerBlockSubmodules(layer_specs=[layer] * num_layers, layer_norm=kernels.norm)
