"""A stand-in for Transformer Engine's modules as far as checkpoints see them: state beside the tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch

from qwen_megatron.model.builder import unwrapped

# Modules of a layer, and of the model, whose state Transformer Engine's layers name with `_extra_state` behind it; the
# norms of queries and keys where a model has them. Its attention's stands in `core_attention.kernel.kernel`.
IN_LAYER = (
    "self_attention.linear_qkv",
    "self_attention.linear_proj",
    "self_attention.core_attention.kernel",
    "self_attention.q_layernorm",
    "self_attention.k_layernorm",
    "mlp.linear_fc1",
    "mlp.linear_fc2",
)
AT_END = ("decoder.final_layernorm",)


def with_extra_state(build: Callable[..., torch.nn.Module]) -> Callable[..., torch.nn.Module]:
    """`build_model` whose torch modules have state as with FP8; taking another one for theirs raises."""

    def call(*args: object, **kwargs: object) -> torch.nn.Module:
        model = build(*args, **kwargs)
        qwen = unwrapped(model)
        layers = [f"decoder.layers.{i}.{name}" for i in range(len(qwen.decoder.layers)) for name in IN_LAYER]
        for name, module in qwen.named_modules():
            if name in (*layers, *AT_END) and not isinstance(module, torch.nn.Identity):
                module.__class__ = stateful(type(module))
        return model

    return call


def stateful(kind: type[torch.nn.Module]) -> type[torch.nn.Module]:
    """The class with a state of its own."""

    class Stateful(kind):  # type: ignore[valid-type, misc]
        def get_extra_state(self) -> torch.Tensor:
            return torch.full((8,), 3, dtype=torch.uint8)

        def set_extra_state(self, state: torch.Tensor | None) -> None:
            # None is what Megatron-Core's linears put there by themselves where there is none.
            assert state is None, "nothing may be put in the place of scales that a run finds anew"

    return Stateful
