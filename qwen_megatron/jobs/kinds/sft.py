"""Supervised fine-tuning as the command line knows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from data_tools.settings.problems import Problems
from qwen_megatron.config.fill import Sections
from qwen_megatron.config.resolve import ResolvedConfig
from qwen_megatron.errors import DataError
from qwen_megatron.jobs.kinds.base import JobKind


class Sft(JobKind):
    """Supervised fine-tuning."""

    name = "sft"
    help = "fine-tune a model on dialogues"
    description = "Supervised fine-tuning. Starts from the newest checkpoint in checkpoint.directory if there is one."
    entry = "qwen_megatron.jobs.sft:sft"
    examples = """\
  check without training:
    qwen-megatron sft RECIPE.yaml checkpoint.init_from=runs/7b/iter_0572205 --dry-run
"""

    def check_data(self, sections: Sections, problems: Problems) -> list[str]:
        return ["sft: is not built yet"]

    def sources(self, config: ResolvedConfig) -> Callable[[int], Mapping[str, Mapping[str, Any]]]:
        raise DataError("sft: is not built yet")
