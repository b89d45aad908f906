"""A text and its greedy continuation."""

from __future__ import annotations

from pathlib import Path

from qwen_megatron.inference.opening import Opening, open_generator
from qwen_megatron.inference.sampling import Sampling


def continue_text(source: Path, prompt: str, sampling: Sampling, opening: Opening | None = None) -> str:
    """The prompt and what follows, up to the end of the document.

    Args:
        source: A checkpoint, a run's folder or a Hugging Face folder.
        prompt: Ordinary text.
        sampling: How it goes on.
        opening: How the model is read.
    Raises:
        CheckpointError, ConfigError, DataError, PlatformError: from source and prompt.
    """
    with open_generator(source, opening) as generator:
        assert generator.vocabulary is not None
        tokens = generator.ids_of(prompt, 0)
        (found,) = generator.generate([tokens], sampling)
        return f"{generator.vocabulary.decode(tokens)}{found.text}"
