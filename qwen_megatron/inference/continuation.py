"""A text and its greedy continuation by a model of Qwen's vocabulary."""

from __future__ import annotations

from pathlib import Path

from data_tools.tokenizer.qwen import END_OF_DOCUMENT, NUM_TOKENS, QwenTokenizer
from qwen_megatron.errors import CheckpointError
from qwen_megatron.inference.generate import generate_greedy
from qwen_megatron.inference.loading import load_for_inference, single_process


def continue_text(
    source: Path, prompt: str, max_new_tokens: int, *, name: str | None = None, allow_nonfinite: bool = False
) -> str:
    """The prompt and what follows, up to the end of the document.

    Args:
        source: A checkpoint, a run's folder or a Hugging Face folder.
        prompt: Ordinary text.
        max_new_tokens: Tokens to add at most.
        name: Of the model, where a checkpoint holds several.
        allow_nonfinite: Take weights that hold NaN or infinity too.
    Raises:
        CheckpointError, DataError, PlatformError: from source and prompt.
        ValueError: if the prompt is empty.
    """
    tokenizer = QwenTokenizer()
    tokens = tokenizer.encode(prompt)
    with single_process() as groups:
        model = load_for_inference(source, groups, name=name, allow_nonfinite=allow_nonfinite)
        if model.num_tokens_in_vocabulary < NUM_TOKENS:
            raise CheckpointError(
                f"{source}: its vocabulary has {model.num_tokens_in_vocabulary} rows, Qwen's tokenizer "
                f"{NUM_TOKENS} tokens; text needs a model with Qwen's vocabulary"
            )
        new = generate_greedy(model, tokens, max_new_tokens, stop=(END_OF_DOCUMENT,))
    return tokenizer.decode([*tokens, *new])
