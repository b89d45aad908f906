"""Supervised fine-tuning: pretraining's steps over packed dialogues, of which the answers alone are learned."""

from __future__ import annotations

from collections.abc import Sequence

from qwen_megatron.config.resolve import ResolvedConfig
from qwen_megatron.jobs.dialogues import held_out_dialogues, open_packed
from qwen_megatron.jobs.pretrain import Pretraining, train_one_model
from qwen_megatron.parallel.groups import Groups
from qwen_megatron.train.run import Hook


class FineTuning(Pretraining):
    """Steps over a blend of dialogues; the loss is the mean over the targets of the whole batch.

    Args:
        config: Resolved configuration.
        groups: Layout.
    Raises:
        DataError: if a corpus is missing, damaged, of another kind or too small.
    """

    def __init__(self, config: ResolvedConfig, groups: Groups):
        super().__init__(config, groups, dataset=open_packed(config), held_out=held_out_dialogues(config))


def sft(config: ResolvedConfig, more_hooks: Sequence[Hook] = ()) -> str | None:
    """Runs a configuration on this rank, from the newest checkpoint where there is one; as `pretrain`.

    Raises:
        DataError, CheckpointError, PlatformError, TrainingError: see their messages; nothing is left half-written.
    """
    return train_one_model(config, FineTuning, more_hooks=more_hooks)
