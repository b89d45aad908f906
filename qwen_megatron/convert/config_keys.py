"""Which keys of a config.json are known, and what becomes of the others.

A key that nobody reads may change what the model computes: what is set and sounds like arithmetic is refused by name.
"""

from __future__ import annotations

import re

from data_tools.io.plain_text import printable
from qwen_megatron.convert.config_file import ConfigFile
from qwen_megatron.convert.hf_format import Format

# Read or checked by `hf_config`, in any format.
READ = frozenset(
    {
        "hidden_size",
        "initializer_range",
        "intermediate_size",
        "model_type",
        "num_attention_heads",
        "num_hidden_layers",
        "quantization_config",
        "tie_word_embeddings",
        "vocab_size",
    }
)
READ_BY_FORMAT = {
    Format.QWEN1: frozenset(
        {
            "activation",
            "apply_residual_connection_post_layernorm",
            "attn_dropout_prob",
            "attn_pdrop",
            "emb_dropout_prob",
            "embd_pdrop",
            "ffn_hidden_size",
            "kv_channels",
            "layer_norm_epsilon",
            "n_embd",
            "n_head",
            "n_layer",
            "no_bias",
            "padded_vocab_size",
            "pos_emb",
            "resid_pdrop",
            "rotary_emb_base",
            "rotary_pct",
            "scale_attn_weights",
            "seq_length",
            "use_dynamic_ntk",
            "use_logn_attn",
        }
    ),
    Format.QWEN2: frozenset(
        {
            "attention_dropout",
            "head_dim",
            "hidden_act",
            "is_causal",
            "layer_types",
            "max_position_embeddings",
            "max_window_layers",
            "num_key_value_heads",
            "partial_rotary_factor",
            "rms_norm_eps",
            "rope_parameters",
            "rope_scaling",
            "rope_theta",
            "sliding_window",
            "use_mrope",
            "use_sliding_window",
        }
    ),
}
READ_BY_FORMAT[Format.QWEN3] = READ_BY_FORMAT[Format.QWEN2] | {"attention_bias"}

# Looks like arithmetic and is none here: how a kernel works, what is returned, how text is generated.
HARMLESS = frozenset(
    {
        "attention_bias",
        "attention_softmax_in_fp32",
        "attn_implementation",
        "base_model_pp_plan",
        "base_model_tp_plan",
        "bias_dropout_fusion",
        "fp32_residual_connection",
        "is_decoder",
        "masked_softmax_fusion",
        "max_position_embeddings",
        "max_window_layers",
        "n_positions",
        "num_attention_heads",
        "output_attentions",
        "output_hidden_states",
        "pretraining_tp",
        "sliding_window",
        "softmax_in_fp32",
        "tokenizer_class",
        "use_flash_attention",
        "use_flash_attn",
    }
)
ARITHMETIC = re.compile(
    "act|adapter|attention|attn|bias|causal|chunk|conv|dropout|embed|expert|head|layer|logit|lora|mlp|moe|mtp|"
    "multiplier|norm|pdrop|position|prun|quant|rank|residual|rope|rotary|scal|softcap|softmax|sparse|tie|window|yarn"
)


def check_keys(file: ConfigFile, hf_format: Format) -> None:
    """Refuses what is set and not read, if it could change what the model computes.

    Raises:
        CheckpointError: naming the key.
    """
    known = READ | READ_BY_FORMAT[hf_format] | HARMLESS
    for name, value in file.content.items():
        # Names that begin with _ are notes of transformers to itself. What is off or empty changes nothing.
        if name in known or name.startswith("_") or not value:
            continue
        if ARITHMETIC.search(name.lower()):
            raise file.problem(
                printable(name),
                value,
                f"no {hf_format.value} model here reads it; if it does not change what the model computes, remove it",
            )
