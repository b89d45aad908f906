"""Reward models as the command line knows them."""

from __future__ import annotations

from types import MappingProxyType

from data_tools.corpus.sidecar import PAIRS
from data_tools.settings.problems import Problems
from qwen_megatron.config.fill import Sections
from qwen_megatron.config.job_shape import JobShape
from qwen_megatron.config.resolve import ResolvedConfig
from qwen_megatron.data.blended import BlendedSamples
from qwen_megatron.data.preference.dataset import SIDES, open_pairs
from qwen_megatron.jobs.dialogues import check_dialogues, open_preferences
from qwen_megatron.jobs.kinds.base import BlendedJob
from qwen_megatron.model.head_kinds import SCALAR
from qwen_megatron.train.names import MAIN


class Reward(BlendedJob):
    """Reward models."""

    name = "reward"
    help = "train a reward or preference model on pairs"
    description = (
        "Trains a model with a scalar head on pairs of a chosen and a rejected dialogue. Starts from "
        "checkpoint.init_from, a language model or a preference model with its head, or goes on from the newest "
        "checkpoint in checkpoint.directory if there is one."
    )
    shape = JobShape(has_scalar_head=True, rows_per_sample=SIDES)
    heads = MappingProxyType({MAIN: SCALAR})
    entry = "qwen_megatron.jobs.reward:reward"
    examples = """\
  pairs to a corpus, then a preference model of many pairs and a reward model from it:
    qwen-data chat pairs.jsonl --kind pairs --output data/pairs
    qwen-megatron launch reward recipe:preference-7b data.blend=[data/many] checkpoint.init_from=exports/7b
    qwen-megatron launch reward recipe:reward-7b data.blend=[data/pairs] \\
        checkpoint.init_from=runs/preference-7b/iter_0004000
  the accuracy of each corpus, with its interval, from 500 pairs held out of them:
    qwen-megatron launch reward recipe:reward-7b 'data.blend=[data/helpful,data/harmless]' data.eval_samples=500
"""

    def check_settings(self, sections: Sections, problems: Problems) -> None:
        """A reward is read at one place of a whole sequence."""
        size = sections.parallel.context_parallel_size
        if size > 1 and problems.usable("parallel.context_parallel_size"):
            rule = "must be 1 for a reward model, whose rewards are read from whole sequences; use 1"
            problems.add("parallel.context_parallel_size", size, rule)

    def check_data(self, sections: Sections, problems: Problems) -> list[str]:
        return check_dialogues(sections, problems, PAIRS, open_pairs)

    def open(self, config: ResolvedConfig) -> BlendedSamples:
        return open_preferences(config)
