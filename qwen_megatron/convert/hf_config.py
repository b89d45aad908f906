"""config.json and generation_config.json of the Hugging Face formats, from and to our description of a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools.settings.problems import Problems
from data_tools.settings.words import show
from data_tools.tokenizer.qwen import END_OF_DOCUMENT
from qwen_megatron.config.rules.check import check_model
from qwen_megatron.config.sections.model import ModelConfig
from qwen_megatron.config.serialize import from_dict
from qwen_megatron.convert.config_file import ConfigFile, read_json
from qwen_megatron.convert.config_keys import check_keys
from qwen_megatron.convert.hf_format import Format
from qwen_megatron.errors import CheckpointError, ConfigError

# Of transformers' Qwen2Config and Qwen3Config; a head of the latter does not follow from the hidden size.
DEFAULT_MAX_WINDOW_LAYERS = 28
DEFAULT_QWEN3_HEAD = 128

MODEL_TYPES = {"qwen": Format.QWEN1, "qwen2": Format.QWEN2, "qwen3": Format.QWEN3}
# What each format has: norms of queries and keys, biases of queries, keys and values.
HAS = {Format.QWEN1: (False, True), Format.QWEN2: (False, True), Format.QWEN3: (True, False)}

if TYPE_CHECKING:
    import torch


def read_config(path: Path) -> tuple[Format, ModelConfig]:
    """The architecture that a config.json describes. Custom code it may point to is not looked at.

    Raises:
        CheckpointError: if it is another architecture, or uses what is not supported here.
    """
    file = ConfigFile(path, read_json(path))
    kind = file.content.get("model_type")
    if not isinstance(kind, str) or kind not in MODEL_TYPES:
        raise file.problem(
            "model_type", kind, "must be qwen (the first series), qwen2 (Qwen1.5, Qwen2, Qwen2.5) or qwen3, dense"
        )
    file.require("quantization_config", None, "the weights are not plain numbers; convert the unquantized model")
    hf_format = MODEL_TYPES[kind]
    check_keys(file, hf_format)
    values = qwen1_values(file) if hf_format is Format.QWEN1 else later_values(file, hf_format)
    values["qk_layernorm"], values["add_qkv_bias"] = HAS[hf_format]
    try:
        model = from_dict(ModelConfig, values, "model")
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    problems = Problems()
    check_model(model, problems)
    if problems.messages:
        raise CheckpointError("\n".join(f"{path}: {message}" for message in problems.messages))
    return hf_format, model


def qwen1_values(file: ConfigFile) -> dict[str, Any]:
    """Fields of `ModelConfig` from the first series' file, under its later or its first names.

    Its `intermediate_size` is the width of both feed-forward branches together.
    """
    file.require("rotary_pct", 1.0, "all channels of a head are rotated")
    file.require("no_bias", True, "only query, key and value have biases")
    file.require("scale_attn_weights", True, "attention is scaled by the head size")
    file.require("pos_emb", "rotary", "positions are rotary")
    file.require("activation", "swiglu", "the feed-forward layer is SwiGLU")
    file.require("apply_residual_connection_post_layernorm", False, "residuals start before the norm")
    for name in ("emb_dropout_prob", "embd_pdrop", "resid_pdrop"):
        file.require(name, 0.0, "only attention has a dropout in the file; set model.hidden_dropout where you train")
    width = file.integer("intermediate_size", "ffn_hidden_size")
    if width % 2:
        raise file.problem("intermediate_size", width, "must be even, it counts both feed-forward branches")
    hidden_size = file.integer("hidden_size", "n_embd")
    heads = file.integer("num_attention_heads", "n_head")
    model = {
        "num_layers": file.integer("num_hidden_layers", "n_layer"),
        "hidden_size": hidden_size,
        "ffn_hidden_size": width // 2,
        "num_attention_heads": heads,
        "num_query_groups": heads,
        "kv_channels": file.integer("kv_channels", default=hidden_size // max(heads, 1)),
        # Where the first release gives both, vocab_size counts tokens and padded_vocab_size rows.
        "vocab_size": file.integer("padded_vocab_size" if "padded_vocab_size" in file.content else "vocab_size"),
        "seq_length": file.integer("seq_length"),
        "rotary_base": file.number("rotary_emb_base", default=10000.0),
        "use_dynamic_ntk": file.boolean("use_dynamic_ntk"),
        "use_logn_attn": file.boolean("use_logn_attn"),
        "layernorm_epsilon": file.number("layer_norm_epsilon"),
        "tie_word_embeddings": file.boolean("tie_word_embeddings", default=False),
        "init_method_std": file.number("initializer_range", default=0.02),
        "attention_dropout": file.number("attn_dropout_prob", "attn_pdrop", default=0.0),
    }
    if heads * model["kv_channels"] != hidden_size:
        raise file.problem(
            "kv_channels",
            model["kv_channels"],
            f"times num_attention_heads({heads}) must be hidden_size({hidden_size})",
        )
    return model


def later_values(file: ConfigFile, hf_format: Format) -> dict[str, Any]:
    """Fields of `ModelConfig` from the file of a `Qwen2ForCausalLM` or `Qwen3ForCausalLM`."""
    file.require("hidden_act", "silu", "the feed-forward layer is SwiGLU")
    file.require("is_causal", True, "each token sees those before it, not those after")
    file.require("use_mrope", False, "positions are those of text alone")
    file.require("partial_rotary_factor", 1.0, "all channels of a head are rotated")
    if hf_format is Format.QWEN3:
        file.require("attention_bias", False, "queries, keys, values and the attention's output have no biases")
    refuse_sliding_layers(file)
    hidden_size = file.integer("hidden_size")
    heads = file.integer("num_attention_heads")
    head_size = DEFAULT_QWEN3_HEAD if hf_format is Format.QWEN3 else hidden_size // max(heads, 1)
    return {
        "num_layers": file.integer("num_hidden_layers"),
        "hidden_size": hidden_size,
        "ffn_hidden_size": file.integer("intermediate_size"),
        "num_attention_heads": heads,
        "num_query_groups": file.integer("num_key_value_heads", default=heads),
        "kv_channels": file.integer("head_dim", default=head_size),
        "vocab_size": file.integer("vocab_size"),
        "seq_length": file.integer("max_position_embeddings"),
        "rotary_base": rope_theta(file),
        "layernorm_epsilon": file.number("rms_norm_eps"),
        "tie_word_embeddings": file.boolean("tie_word_embeddings", default=False),
        "init_method_std": file.number("initializer_range", default=0.02),
        "attention_dropout": file.number("attention_dropout", default=0.0),
    }


def refuse_sliding_layers(file: ConfigFile) -> None:
    """Lets pass what attends to everything before it in all layers, whatever `use_sliding_window` says.

    As in transformers: `layer_types` decides; without it, layers from `max_window_layers` on slide, if they have a
    window.

    Raises:
        CheckpointError: naming the first layer that slides.
    """
    layer_types = file.content.get("layer_types")
    if layer_types is not None:
        if not isinstance(layer_types, list) or any(kind != "full_attention" for kind in layer_types):
            raise file.problem("layer_types", layer_types, "only full_attention is supported")
        return
    # A window that is null is none; one that is not given has the default of transformers.
    has_window = "sliding_window" not in file.content or file.content["sliding_window"] is not None
    if not file.boolean("use_sliding_window", default=False) or not has_window:
        return
    first = file.integer("max_window_layers", default=DEFAULT_MAX_WINDOW_LAYERS)
    if first < file.integer("num_hidden_layers"):
        raise file.problem(
            "use_sliding_window",
            True,
            f"layers from max_window_layers({first}) on attend to a window, which is not implemented; train it without",
        )


def rope_theta(file: ConfigFile) -> float:
    """Base of the rotary embedding: `rope_theta`, since transformers 5 in `rope_parameters`.

    Raises:
        CheckpointError: if the positions are scaled, or the two places disagree.
    """
    values = {"rope_theta": file.content.get("rope_theta")}
    for name in ("rope_parameters", "rope_scaling"):
        rope = file.content.get(name)
        if rope is None:
            continue
        neutral = {"rope_type": "default", "type": "default", "partial_rotary_factor": 1.0}
        if not isinstance(rope, dict) or any(rope.get(key, plain) != plain for key, plain in neutral.items()):
            raise file.problem(name, rope, "scaled or partial rotary positions are not supported")
        unknown = rope.keys() - neutral.keys() - {"rope_theta"}
        if unknown:
            raise file.problem(name, rope, f"{', '.join(sorted(unknown))} is not supported; positions are plain rotary")
        values[f"{name}.rope_theta"] = rope.get("rope_theta")
    return ConfigFile(file.path, values).number(*values)


def write_config(model: ModelConfig, hf_format: Format, dtype: torch.dtype, *, has_qwen_tokens: bool) -> dict[str, Any]:
    """config.json of a model.

    Args:
        model: Architecture.
        hf_format: Format to write.
        dtype: Of the weights in the folder.
        has_qwen_tokens: Whether its tokens are Qwen's; if not, no tokenizer and no token is named.
    Raises:
        CheckpointError: if the format cannot express the architecture.
    """
    check_expressible(model, hf_format)
    config = qwen1_config(model, dtype) if hf_format is Format.QWEN1 else later_config(model, hf_format)
    if not has_qwen_tokens:
        config.pop("tokenizer_class", None)
    return config | {
        "initializer_range": model.init_method_std,
        "tie_word_embeddings": model.tie_word_embeddings,
        "torch_dtype": dtype_name(dtype),
        "use_cache": True,
        "vocab_size": model.vocab_size,
        **control_tokens(has_qwen_tokens=has_qwen_tokens),
    }


def dtype_name(dtype: torch.dtype) -> str:
    """Name of a dtype in config.json, such as `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def fitting_format(model: ModelConfig) -> Format:
    """The format that loses nothing: qwen3 and qwen1 for what only they have, else qwen2.

    Only qwen3 has norms of queries and keys and no biases; only qwen1 has dynamic NTK and LogN scaling.
    """
    if model.qk_layernorm or not model.add_qkv_bias:
        return Format.QWEN3
    same_heads = model.num_query_groups == model.num_attention_heads
    same_width = model.num_attention_heads * model.kv_channels == model.hidden_size
    needs_qwen1 = model.use_dynamic_ntk or model.use_logn_attn
    return Format.QWEN1 if needs_qwen1 and same_heads and same_width else Format.QWEN2


def as_settings(qk_layernorm: bool, add_qkv_bias: bool) -> str:
    """What `HAS` says of a format, in the words of the settings."""
    return f"qk_layernorm={show(qk_layernorm)}, add_qkv_bias={show(add_qkv_bias)}"


def check_expressible(model: ModelConfig, hf_format: Format) -> None:
    """Refuses what a format has no place for.

    Raises:
        CheckpointError: naming the setting, and the format that has it.
    """
    given = model.qk_layernorm, model.add_qkv_bias
    if given != HAS[hf_format]:
        advice = "no Hugging Face format has both as the model has them"
        if given in HAS.values():
            advice = f"use --format {fitting_format(model).value}"
        raise CheckpointError(
            f"{as_settings(*given)}: the {hf_format.value} format has {as_settings(*HAS[hf_format])}; {advice}"
        )
    if hf_format is not Format.QWEN1:
        return
    if model.num_query_groups != model.num_attention_heads:
        raise CheckpointError(
            f"num_query_groups={model.num_query_groups}: the qwen1 format has as many key/value heads as query heads "
            f"({model.num_attention_heads}); use --format qwen2"
        )
    if model.num_attention_heads * model.kv_channels != model.hidden_size:
        raise CheckpointError(
            f"num_attention_heads={model.num_attention_heads} x kv_channels={model.kv_channels}: must be "
            f"hidden_size={model.hidden_size} in the qwen1 format; use --format qwen2"
        )


def qwen1_config(model: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    """What only the first series' file holds, in its released layout."""
    return {
        "architectures": ["QWenLMHeadModel"],
        "attn_dropout_prob": model.attention_dropout,
        "bf16": dtype_name(dtype) == "bfloat16",
        "emb_dropout_prob": 0.0,
        "fp16": dtype_name(dtype) == "float16",
        "fp32": dtype_name(dtype) == "float32",
        "hidden_size": model.hidden_size,
        "intermediate_size": 2 * model.ffn_hidden_size,
        "kv_channels": model.kv_channels,
        "layer_norm_epsilon": model.layernorm_epsilon,
        # The released code sizes its causal mask by this; four times the native context, as in the released 7B and 14B.
        "max_position_embeddings": model.seq_length * (4 if model.use_dynamic_ntk else 1),
        "model_type": "qwen",
        "no_bias": True,
        "num_attention_heads": model.num_attention_heads,
        "num_hidden_layers": model.num_layers,
        "onnx_safe": None,
        "rotary_emb_base": model.rotary_base,
        "rotary_pct": 1.0,
        "scale_attn_weights": True,
        "seq_length": model.seq_length,
        "tokenizer_class": "QWenTokenizer",
        "use_dynamic_ntk": model.use_dynamic_ntk,
        "use_flash_attn": "auto",
        "use_logn_attn": model.use_logn_attn,
    }


def later_config(model: ModelConfig, hf_format: Format) -> dict[str, Any]:
    """What only the file of a `Qwen2ForCausalLM` or `Qwen3ForCausalLM` holds, for transformers 4 and 5."""
    config = {
        "architectures": [f"{hf_format.value.capitalize()}ForCausalLM"],
        "attention_dropout": model.attention_dropout,
        "head_dim": model.kv_channels,
        "hidden_act": "silu",
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "max_position_embeddings": model.seq_length,
        "model_type": hf_format.value,
        "num_attention_heads": model.num_attention_heads,
        "num_hidden_layers": model.num_layers,
        "num_key_value_heads": model.num_query_groups,
        "rms_norm_eps": model.layernorm_epsilon,
        "rope_parameters": {"rope_theta": model.rotary_base, "rope_type": "default"},
        "rope_theta": model.rotary_base,
        "use_sliding_window": False,
    }
    return config | ({"attention_bias": False} if hf_format is Format.QWEN3 else {})


def control_tokens(*, has_qwen_tokens: bool) -> dict[str, int]:
    """Where a document starts and ends, if the tokens are Qwen's."""
    return {"bos_token_id": END_OF_DOCUMENT, "eos_token_id": END_OF_DOCUMENT} if has_qwen_tokens else {}


def write_generation_config(*, has_qwen_tokens: bool) -> dict[str, Any]:
    """generation_config.json: greedy until the end of the document."""
    tokens = control_tokens(has_qwen_tokens=has_qwen_tokens)
    padding = {"pad_token_id": tokens["eos_token_id"]} if tokens else {}
    return tokens | padding | {"do_sample": False}
