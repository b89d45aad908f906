"""PPO as the command line knows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from data_tools.settings.problems import Problems
from data_tools.tokenizer.qwen import is_of_qwen
from qwen_megatron.checkpoint.state import CheckpointState
from qwen_megatron.config.fill import Sections
from qwen_megatron.config.job_shape import JobShape
from qwen_megatron.config.resolve import ResolvedConfig, resolved_config
from qwen_megatron.config.rules.ppo import check_ppo
from qwen_megatron.config.sections.model import ModelConfig
from qwen_megatron.convert.hf_paths import is_hf_folder
from qwen_megatron.errors import CheckpointError, DataError
from qwen_megatron.jobs.architecture import SourceModel, read_source, shape_differences
from qwen_megatron.jobs.kinds.base import JobKind
from qwen_megatron.jobs.queries import open_pretraining, open_queries, ppo_sources
from qwen_megatron.model.head_kinds import LANGUAGE_MODEL, SCALAR
from qwen_megatron.train.names import MAIN, VALUE


class Ppo(JobKind):
    """A policy and a value model, asked by a reference and a reward model."""

    name = "ppo"
    help = "improve a model by its own answers and a reward model"
    description = "PPO. Starts from the newest checkpoint in checkpoint.directory if there is one."
    entry = "qwen_megatron.jobs.ppo:ppo"
    shape = JobShape(has_ppo_models=True)
    heads = MappingProxyType({MAIN: LANGUAGE_MODEL, VALUE: SCALAR})
    examples = """\
  check without training:
    qwen-megatron ppo recipe:ppo-7b data.blend=[data/queries] checkpoint.init_from=runs/sft/iter_0004000 \\
        ppo.reward_model=runs/reward/iter_0001000 checkpoint.directory=runs/ppo --dry-run
  eight processes:
    qwen-megatron launch ppo recipe:ppo-7b parallel.world_size=8 ...
"""

    def check_settings(self, sections: Sections, problems: Problems) -> None:
        check_ppo(sections, problems)

    def check_data(self, sections: Sections, problems: Problems) -> list[str]:
        found = check_frozen(sections, problems)
        blends = ("data.blend", "data.eval_samples", "ppo.pretraining_blend")
        lengths = ("training.seq_length", "ppo.response_length", "model.vocab_size")
        if not problems.usable(*blends, *lengths) or problems.messages:
            return found
        if not sections.data.blend:
            return [*found, "data.blend=[]: names no corpus; make one with qwen-data chat --kind prompts"]
        config = resolved_config(sections)
        for key, opens in {"data.blend": open_queries, "ppo.pretraining_blend": open_pretraining}.items():
            try:
                opens(config)
            except DataError as error:
                found.append(f"{key}: {error}")
        return found

    def sources(self, config: ResolvedConfig) -> Callable[[int], Mapping[str, Mapping[str, Any]]]:
        queries, texts = open_queries(config), open_pretraining(config)
        return lambda consumed: ppo_sources(config, queries, texts, consumed)

    def data_lines(self, config: ResolvedConfig) -> tuple[list[str], list[str]]:
        return list(open_queries(config).notes), []

    def warnings(self, config: ResolvedConfig) -> list[str]:
        sources = open_queries(config).sources(0)
        return [
            f"data.blend={prefix}: its tokens are not known to be Qwen's; samples are written as ids"
            for prefix, source in sources.items()
            if not is_of_qwen(source["tokenizer"], source["end_of_document"])
        ]


def check_frozen(sections: Sections, problems: Problems) -> list[str]:
    """What is wrong with the models that are asked, as far as small files tell."""
    found = []
    reward, reference = sections.ppo.reward_model, sections.ppo.reference_model
    if reward is not None and problems.usable("ppo.reward_model"):
        try:
            check_reward_model(Path(reward), sections.model.vocab_size)
        except CheckpointError as error:
            found.append(f"ppo.reward_model={reward}: {error}")
    if reference is not None and problems.usable("ppo.reference_model"):
        try:
            check_reference(read_source(Path(reference)), sections.model)
        except CheckpointError as error:
            found.append(f"ppo.reference_model={reference}: {error}")
    return found


def check_reference(source: SourceModel, policy: ModelConfig) -> None:
    """Refuses what is not of the policy's form.

    Raises:
        CheckpointError: saying what it is.
    """
    if source.head != LANGUAGE_MODEL:
        raise CheckpointError(f"has a {source.head} head; the reference is a language model as the policy is")
    different = shape_differences(source, policy)
    if different:
        raise CheckpointError(f"{different}; policy and reference have one shape")


def check_reward_model(source: Path, vocab_size: int) -> None:
    """Refuses what gives no scalar, or does not know the policy's tokens.

    Raises:
        CheckpointError: saying what it is.
    """
    if is_hf_folder(source):
        raise CheckpointError("is a Hugging Face folder, which holds no reward model; name a checkpoint")
    heads = {name: model.head for name, model in CheckpointState.read(source).models.items()}
    if heads.get(MAIN) != SCALAR:
        raise CheckpointError(f"has no reward model; its models are {heads}; train one with qwen-megatron reward")
    known = read_source(source).model.vocab_size
    if known < vocab_size:
        raise CheckpointError(f"has a vocabulary of {known} rows, the policy's has {vocab_size}; train one with these")
