"""Rules of products in FP8, each with what to use instead."""

from __future__ import annotations

from data_tools.settings.problems import Problems, nearest_multiples
from qwen_megatron.config.fill import Sections

# Rows and columns of a product in FP8 come in blocks of so many.
BLOCK = 16


def check_fp8(sections: Sections, problems: Problems) -> None:
    """FP8 is for Transformer Engine in bf16, and for sizes that its products take."""
    training, parallel, model = sections.training, sections.parallel, sections.model
    recipe = training.fp8
    if training.fp8_first_last_layers_bf16 and recipe != "tensorwise":
        rule = "needs training.fp8=tensorwise, delayed scaling has one state for all layers; use false"
        problems.add("training.fp8_first_last_layers_bf16", True, rule)
    if recipe == "none":
        return
    if parallel.platform == "cpu" or model.implementation == "torch":
        where = "parallel.platform=cpu" if parallel.platform == "cpu" else "model.implementation=torch"
        problems.add("training.fp8", recipe, f"needs Transformer Engine on a GPU, but {where}; use none")
    if training.precision != "bf16":
        problems.add("training.fp8", recipe, "needs training.precision=bf16; use none")
    tensor = "parallel.tensor_model_parallel_size"
    if problems.usable("model.hidden_size") and model.hidden_size % BLOCK != 0:
        rule = f"must be a multiple of {BLOCK} with training.fp8; {nearest_multiples(BLOCK, model.hidden_size)}"
        problems.add("model.hidden_size", model.hidden_size, rule)
    unit = BLOCK * parallel.tensor_model_parallel_size
    if problems.usable("model.ffn_hidden_size", tensor) and model.ffn_hidden_size % unit != 0:
        rule = f"must be a multiple of {BLOCK} x {tensor}({parallel.tensor_model_parallel_size}) with training.fp8"
        problems.add(
            "model.ffn_hidden_size", model.ffn_hidden_size, f"{rule}; {nearest_multiples(unit, model.ffn_hidden_size)}"
        )
    if not problems.usable("training.seq_length", "training.micro_batch_size", "parallel.context_parallel_size"):
        return
    tokens = training.seq_length * training.micro_batch_size // parallel.context_parallel_size
    if tokens % BLOCK != 0:
        rule = f"makes {tokens} tokens a micro-batch with training.micro_batch_size({training.micro_batch_size})"
        advice = nearest_multiples(BLOCK * parallel.context_parallel_size, training.seq_length)
        problems.add(
            "training.seq_length", training.seq_length, f"{rule}, training.fp8 needs a multiple of {BLOCK}; {advice}"
        )
