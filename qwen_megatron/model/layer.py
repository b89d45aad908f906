"""One layer, with a way of its own for new tokens of cached texts on the CPU.

Legend: s sequence, b micro-batch, h hidden.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, cast

import torch
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.transformer_layer import TransformerLayer

from qwen_megatron.model.attention import QwenCoreAttention
from qwen_megatron.model.attention_context import AttentionContext
from qwen_megatron.model.norm import RmsNorm
from qwen_megatron.platforms.layer_step import LayerWeights, layer_step, takes_step


@dataclass(frozen=True, kw_only=True)
class StepParts:
    """The modules whose work a step takes over."""

    input_norm: RmsNorm
    qkv: torch.nn.Module
    query_norm: RmsNorm | None
    key_norm: RmsNorm | None
    core: QwenCoreAttention
    projection: torch.nn.Module
    mlp_norm: RmsNorm
    gates_and_values: torch.nn.Module
    output: torch.nn.Module
    all_modules: tuple[torch.nn.Module, ...]

    @property
    def are_hooked(self) -> bool:
        """Whether somebody waits for calls of single modules: to gather their weights, or to look at what passes."""
        return any(module._forward_hooks or module._forward_pre_hooks for module in self.all_modules)

    def weights(self) -> LayerWeights:
        """As they are now."""
        return LayerWeights(
            input_norm=self.input_norm.weight,
            qkv=cast(torch.Tensor, self.qkv.weight),
            qkv_bias=cast("torch.Tensor | None", self.qkv.bias),
            query_norm=None if self.query_norm is None else self.query_norm.weight,
            key_norm=None if self.key_norm is None else self.key_norm.weight,
            projection=cast(torch.Tensor, self.projection.weight),
            mlp_norm=self.mlp_norm.weight,
            gates_and_values=cast(torch.Tensor, self.gates_and_values.weight),
            output=cast(torch.Tensor, self.output.weight),
            eps=self.input_norm.eps,
        )


class QwenLayer(TransformerLayer):
    """Megatron-Core's layer; a new token of each of a few cached texts goes through it in one call on the CPU.

    That is for one tensor-parallel rank in inference mode. What else comes takes Megatron-Core's way, and so does all
    where somebody has hooks on the modules within.
    """

    def forward(self, hidden_states: torch.Tensor, *args: Any, **others: Any) -> Any:
        """[s, b, h] to [s, b, h] and None; arguments as Megatron-Core's."""
        output_sbh = self.step(hidden_states, others.get("packed_seq_params"))
        return super().forward(hidden_states, *args, **others) if output_sbh is None else (output_sbh, None)

    @functools.cached_property
    def step_parts(self) -> StepParts | None:
        """The parts of a layer on one tensor-parallel rank; None for one with parts that a step does not know."""
        attention, mlp = self.self_attention, self.mlp
        heads = [
            None if isinstance(norm, IdentityOp) else norm for norm in (attention.q_layernorm, attention.k_layernorm)
        ]
        norms = (self.input_layernorm, self.pre_mlp_layernorm, *(norm for norm in heads if norm is not None))
        linears = (attention.linear_proj, mlp.linear_fc1, mlp.linear_fc2)
        if (
            not all(isinstance(norm, RmsNorm) and norm.eps == norms[0].eps for norm in norms)
            or any(linear.bias is not None for linear in linears)
            or attention.linear_qkv.tp_group.size() > 1
        ):
            return None
        return StepParts(
            input_norm=self.input_layernorm,
            qkv=attention.linear_qkv,
            query_norm=heads[0],
            key_norm=heads[1],
            core=attention.core_attention,
            projection=attention.linear_proj,
            mlp_norm=self.pre_mlp_layernorm,
            gates_and_values=mlp.linear_fc1,
            output=mlp.linear_fc2,
            all_modules=tuple(module for module in self.modules() if module is not self),
        )

    def step(self, hidden_sbh: torch.Tensor, context: AttentionContext | None) -> torch.Tensor | None:
        """The layer's output [s, b, h] for one new token of each text; None where it is for the single modules."""
        if (
            not torch.is_inference_mode_enabled()
            or not hidden_sbh.is_cpu
            or hidden_sbh.size(0) != 1
            or self.training
            or not isinstance(context, AttentionContext)
            or context.cache is None
        ):
            return None
        parts = self.step_parts
        if parts is None or parts.are_hooked:
            return None
        weights, core = parts.weights(), parts.core
        if not takes_step(hidden_sbh[0], weights):
            return None
        positions = core.positions(context, hidden_sbh)
        offsets = context.offsets or (0,) * hidden_sbh.size(1)
        size = core.rotary.head_size
        # A key and a value to each group, besides the queries.
        groups = (weights.qkv.size(0) - weights.projection.size(1)) // (2 * size)
        keys, values = context.cache.room(core.layer_number, (groups, size), hidden_sbh, offsets)
        scale = positions.query_scale
        return layer_step(
            hidden_sbh[0],
            weights,
            positions.cos.flatten(0, 2),
            positions.sin.flatten(0, 2),
            keys,
            values,
            offsets,
            query_scale_b=None if scale is None else scale.flatten(),
            window=core.window,
            scale=cast("float | None", core.kernel.softmax_scale),
        )[None]
