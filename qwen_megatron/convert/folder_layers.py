"""Layers of a Hugging Face folder by code that is not ours: transformers' own, and the first series' in plain torch.

Legend: b batch, s sequence, h hidden size, n heads, d head size.
"""

from __future__ import annotations

import abc
from typing import Any

import torch
from torch.nn import functional

from qwen_megatron.config.sections.model import ModelConfig
from qwen_megatron.convert.activations import Activations, recorded
from qwen_megatron.convert.config_file import read_json
from qwen_megatron.convert.hf_folder import CONFIG, HfFolder
from qwen_megatron.convert.name_map import Format


class FolderLayers(abc.ABC):
    """Runs one layer after the other in fp32.

    Args:
        hf: The folder.
        device: Where to.
    """

    def __init__(self, hf: HfFolder, device: torch.device):
        self.hf, self.device = hf, device

    def weights(self, prefix: str) -> dict[str, torch.Tensor]:
        """Tensors whose names begin so, without it, fp32."""
        return {
            name.removeprefix(prefix): self.hf.read_tensor(name).to(self.device, torch.float32)
            for name in self.hf.tensors
            if name.startswith(prefix) and not name.endswith("rotary_emb.inv_freq")
        }

    @abc.abstractmethod
    def layer(self, number: int, hidden_bsh: torch.Tensor) -> tuple[torch.Tensor, Activations]:
        """A layer's output, and those of attention and feed-forward layer before they are added."""

    @abc.abstractmethod
    def last_norm(self, hidden_bsh: torch.Tensor) -> torch.Tensor:
        """The norm at the end of the stack."""


def folder_layers(hf: HfFolder, device: torch.device) -> FolderLayers:
    """The layers of a folder of any format."""
    return PlainLayers(hf, device) if hf.hf_format is Format.QWEN1 else TransformersLayers(hf, device)


class TransformersLayers(FolderLayers):
    """A decoder layer of transformers, which reads config.json by itself."""

    def __init__(self, hf: HfFolder, device: torch.device):
        super().__init__(hf, device)
        import transformers
        from transformers.models.qwen2 import modeling_qwen2
        from transformers.models.qwen3 import modeling_qwen3

        # It takes the file as it is.
        read_json(hf.path / CONFIG)
        is_qwen3 = hf.hf_format is Format.QWEN3
        code: Any = modeling_qwen3 if is_qwen3 else modeling_qwen2
        kind = transformers.Qwen3Config if is_qwen3 else transformers.Qwen2Config
        config = kind.from_pretrained(hf.path, local_files_only=True)
        config._attn_implementation = "sdpa"
        name = "Qwen3" if is_qwen3 else "Qwen2"
        self.module = getattr(code, f"{name}DecoderLayer")(config, layer_idx=0).to(device, torch.float32).eval()
        self.rotary = getattr(code, f"{name}RotaryEmbedding")(config).to(device)
        self.norm = getattr(code, f"{name}RMSNorm")(config.hidden_size, eps=config.rms_norm_eps).to(device)
        self.steps: dict[str, torch.nn.Module] = {"attention": self.module.self_attn, "feed-forward": self.module.mlp}

    def layer(self, number: int, hidden_bsh: torch.Tensor) -> tuple[torch.Tensor, Activations]:
        self.module.load_state_dict(self.weights(f"model.layers.{number}."), strict=True)
        positions_bs = torch.arange(hidden_bsh.size(1), device=self.device).expand(hidden_bsh.shape[:2])
        with recorded(self.steps, lambda output_bsh: output_bsh) as steps:
            output = self.module(
                hidden_bsh, position_ids=positions_bs, position_embeddings=self.rotary(hidden_bsh, positions_bs)
            )
        return (output[0] if isinstance(output, tuple) else output), steps

    def last_norm(self, hidden_bsh: torch.Tensor) -> torch.Tensor:
        self.norm.load_state_dict(self.weights("model.norm."), strict=True)
        return self.norm(hidden_bsh)


class PlainLayers(FolderLayers):
    """The first series' layer, written down once more: its released code is not run.

    Source: the released `modeling_qwen.py`; within the native context, where nothing is stretched.
    """

    def layer(self, number: int, hidden_bsh: torch.Tensor) -> tuple[torch.Tensor, Activations]:
        weights, model = self.weights(f"transformer.h.{number}."), self.hf.model
        normed_bsh = rms_norm(hidden_bsh, weights["ln_1.weight"], model)
        projected = functional.linear(normed_bsh, weights["attn.c_attn.weight"], weights["attn.c_attn.bias"])
        query, key, value = (
            part.unflatten(-1, (model.num_attention_heads, model.kv_channels)).transpose(1, 2)
            for part in projected.chunk(3, dim=-1)
        )
        mixed_bnsd = functional.scaled_dot_product_attention(
            turned(query, model), turned(key, model), value, is_causal=True
        )
        attended_bsh = functional.linear(mixed_bnsd.transpose(1, 2).flatten(2), weights["attn.c_proj.weight"])
        hidden_bsh = hidden_bsh + attended_bsh
        normed_bsh = rms_norm(hidden_bsh, weights["ln_2.weight"], model)
        # The released code multiplies w1 with SiLU of w2.
        product = functional.linear(normed_bsh, weights["mlp.w1.weight"]) * functional.silu(
            functional.linear(normed_bsh, weights["mlp.w2.weight"])
        )
        fed_bsh = functional.linear(product, weights["mlp.c_proj.weight"])
        steps = {"attention": attended_bsh.cpu(), "feed-forward": fed_bsh.cpu()}
        return hidden_bsh + fed_bsh, steps

    def last_norm(self, hidden_bsh: torch.Tensor) -> torch.Tensor:
        return rms_norm(hidden_bsh, self.weights("transformer.ln_f.")["weight"], self.hf.model)


def rms_norm(hidden: torch.Tensor, weight: torch.Tensor, model: ModelConfig) -> torch.Tensor:
    """The first series' norm."""
    return hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + model.layernorm_epsilon) * weight


def turned(heads_bnsd: torch.Tensor, model: ModelConfig) -> torch.Tensor:
    """Queries or keys, each pair of channels half a head apart turned by its position."""
    size = model.kv_channels
    frequencies = model.rotary_base ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    angles_sd = torch.outer(torch.arange(heads_bnsd.size(2), dtype=torch.float64), frequencies)
    cos, sin = (part.to(heads_bnsd.device, torch.float32) for part in (angles_sd.cos(), angles_sd.sin()))
    left, right = heads_bnsd.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)
