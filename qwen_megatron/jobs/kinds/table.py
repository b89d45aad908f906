"""All jobs by the names of their commands."""

from __future__ import annotations

from collections.abc import Sequence

from qwen_megatron.jobs.kinds.base import JobKind
from qwen_megatron.jobs.kinds.ppo import Ppo
from qwen_megatron.jobs.kinds.pretrain import Pretrain
from qwen_megatron.jobs.kinds.reward import Reward
from qwen_megatron.jobs.kinds.sft import Sft

PRETRAIN = Pretrain()

JOBS: dict[str, JobKind] = {kind.name: kind for kind in (PRETRAIN, Sft(), Reward(), Ppo())}


def split_job(words: Sequence[str]) -> tuple[JobKind, list[str]]:
    """The job that a command line begins with, `pretrain` where it names none, and the rest."""
    if words and words[0] in JOBS:
        return JOBS[words[0]], list(words[1:])
    return PRETRAIN, list(words)


def job_words(kind: JobKind) -> list[str]:
    """What `split_job` reads: nothing for `pretrain`."""
    return [] if kind is PRETRAIN else [kind.name]
