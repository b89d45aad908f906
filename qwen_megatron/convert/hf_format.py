"""The formats of a Hugging Face folder; apart from what converts them, so that config.json is read without torch."""

from __future__ import annotations

import enum


class Format(enum.StrEnum):
    """Layouts of a Hugging Face folder."""

    QWEN1 = "qwen1"  # QWenLMHeadModel, the first series
    QWEN2 = "qwen2"  # Qwen2ForCausalLM, Qwen1.5 and later
