"""The formats of a Hugging Face folder; apart from what converts them, so that config.json is read without torch."""

from __future__ import annotations

import enum


class Format(enum.StrEnum):
    """Layouts of a Hugging Face folder."""

    QWEN1 = "qwen1"  # QWenLMHeadModel, the first series
    QWEN2 = "qwen2"  # Qwen2ForCausalLM: Qwen1.5, Qwen2, Qwen2.5
    QWEN3 = "qwen3"  # Qwen3ForCausalLM

    @property
    def has_stretches(self) -> bool:
        """Whether it has a place for dynamic NTK and LogN scaling."""
        return self is Format.QWEN1
