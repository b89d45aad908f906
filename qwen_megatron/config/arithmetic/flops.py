"""Floating-point operations of training, the numerator of model FLOPs utilisation.

Forward, for each token: 2 operations for each weight in a matrix product (layers and output layer, padding not counted;
the embedding is a look-up), and in each layer two products (queries with keys, probabilities with values) of 2 P
operations for each visible position, P query heads x head size. Causal attention sees s / 2 positions on average, so
both together cost 2 s P. The backward pass costs twice the forward pass. Recomputation is not counted: utilisation is
about useful work.
Source: Chowdhery et al. 2022 (arXiv 2204.02311), appendix B; causal attention counted half.
"""

from __future__ import annotations

from qwen_megatron.config.arithmetic.parameters import layer_matrix_parameters
from qwen_megatron.config.sections.model import ModelConfig


def training_flops_per_token(model: ModelConfig, seq_length: int, *, has_scalar_head: bool = False) -> float:
    """Operations of forward and backward pass for one token.

    Args:
        model: Architecture.
        seq_length: Context trained on, in tokens.
        has_scalar_head: One row in place of the output layer.
    """
    return 3.0 * (
        2.0 * product_weights(model, has_scalar_head=has_scalar_head) + attention_flops_per_token(model, seq_length)
    )


def product_weights(model: ModelConfig, *, has_scalar_head: bool = False) -> int:
    """Weights that every token is multiplied with."""
    rows = 1 if has_scalar_head else model.vocab_size
    return model.num_layers * layer_matrix_parameters(model) + rows * model.hidden_size


def attention_flops_per_token(model: ModelConfig, seq_length: int) -> float:
    """Operations of the two attention products for one token, forward, over all layers; causal: half of a square."""
    return 2.0 * seq_length * model.num_attention_heads * model.kv_channels * model.num_layers


def flops_formula(model: ModelConfig, seq_length: int, *, has_scalar_head: bool = False) -> str:
    """How the number comes about, in one line."""
    weights = product_weights(model, has_scalar_head=has_scalar_head)
    whole = training_flops_per_token(model, seq_length, has_scalar_head=has_scalar_head)
    attention = attention_flops_per_token(model, seq_length)
    return (
        f"{whole:.4g} FLOPs a token = 3 (forward, backward twice) x (2 x {weights:,} weights in matrix "
        f"products + {attention:,.0f} of causal attention, counted half)"
    )


def utilization_formula(peak_tflops_per_rank: float | None, world_size: int) -> str:
    """What model FLOPs utilisation divides by."""
    if peak_tflops_per_rank is None:
        return "MFU is not reported: logging.peak_tflops_per_rank is not set"
    return f"MFU = that x tokens/s / ({world_size} ranks x {peak_tflops_per_rank:g} TFLOP/s)"
