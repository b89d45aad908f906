"""Pretraining as the command line knows it."""

from __future__ import annotations

from data_tools.settings.problems import Problems
from qwen_megatron.config.fill import Sections
from qwen_megatron.config.resolve import ResolvedConfig
from qwen_megatron.data.blended import BlendedSamples
from qwen_megatron.data.pretraining.tokenizers import foreign_corpora
from qwen_megatron.jobs.blend import open_blend
from qwen_megatron.jobs.corpora import check_corpora
from qwen_megatron.jobs.kinds.base import BlendedJob


class Pretrain(BlendedJob):
    """Next-token loss over a blend of corpora."""

    name = "pretrain"
    help = "train a model on text"
    description = "Trains a model. Starts from the newest checkpoint in checkpoint.directory if there is one."
    entry = "qwen_megatron.jobs.pretrain:pretrain"
    examples = """\
  check without training:
    qwen-megatron pretrain examples/demo.yaml data.blend=[demo/corpus] --dry-run
  one process:
    qwen-megatron pretrain model.preset=tiny training.global_batch_size=4 training.train_iters=20 \\
        data.blend=[demo/corpus] checkpoint.directory=runs/tiny
  eight processes, two corpora at 7 : 3:
    qwen-megatron launch examples/demo.yaml \\
        'data.blend={data/web: 0.7, data/code: 0.3}' training.train_iters=20
"""

    def check_data(self, sections: Sections, problems: Problems) -> list[str]:
        return check_corpora(sections, problems)

    def open(self, config: ResolvedConfig) -> BlendedSamples:
        return open_blend(config)

    def warnings(self, config: ResolvedConfig) -> list[str]:
        return foreign_corpora(config.data.blend, config.model.vocab_size)
