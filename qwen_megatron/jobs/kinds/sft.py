"""Supervised fine-tuning as the command line knows it."""

from __future__ import annotations

from data_tools.corpus.sidecar import DIALOGUES
from data_tools.settings.problems import Problems
from qwen_megatron.config.fill import Sections
from qwen_megatron.config.resolve import ResolvedConfig
from qwen_megatron.config.rules.check import check_document_mask
from qwen_megatron.config.rules.engine import check_graphs_of_documents
from qwen_megatron.data.blended import BlendedSamples
from qwen_megatron.data.sft.dataset import open_dialogues
from qwen_megatron.jobs.dialogues import check_dialogues, open_packed
from qwen_megatron.jobs.kinds.base import BlendedJob


class Sft(BlendedJob):
    """Supervised fine-tuning."""

    name = "sft"
    help = "fine-tune a model on dialogues"
    description = (
        "Fine-tunes a model on dialogues; the answers alone are learned, the mean over all of a batch. "
        "Starts from checkpoint.init_from, a checkpoint or a Hugging Face folder, or goes on from the newest "
        "checkpoint in checkpoint.directory if there is one."
    )
    entry = "qwen_megatron.jobs.sft:sft"
    examples = """\
  dialogues to a corpus (qwen-data chat --help: formats), then one epoch over two of them:
    qwen-data chat dialogues.jsonl --output data/dialogues
    qwen-megatron launch sft recipe:sft-7b data.blend=[data/dialogues,data/tools] checkpoint.init_from=exports/7b
  check without training:
    qwen-megatron sft recipe:sft-7b data.blend=[data/dialogues] checkpoint.init_from=exports/7b --dry-run
  a second stage: the first one's weights, a schedule of its own, another folder:
    qwen-megatron launch sft recipe:code-sft-2-7b data.blend=[data/code] \\
        checkpoint.init_from=runs/code-sft-1-7b/iter_0002000
"""

    def check_settings(self, sections: Sections, problems: Problems) -> None:
        """Dialogues in a row do not see each other, which not all kernels can do on all layouts."""
        reason = "to fine-tune (dialogues share rows)"
        check_document_mask(sections, problems, reason)
        check_graphs_of_documents(sections, problems, reason)

    def check_data(self, sections: Sections, problems: Problems) -> list[str]:
        return check_dialogues(sections, problems, DIALOGUES, open_dialogues)

    def open(self, config: ResolvedConfig) -> BlendedSamples:
        return open_packed(config)
