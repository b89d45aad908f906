"""What is known of a kind of job before torch is imported: its command, its rules, its data."""

from __future__ import annotations

import abc
import importlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from data_tools.settings.problems import Problems
from qwen_megatron.config.fill import Sections
from qwen_megatron.config.job_shape import LANGUAGE_MODELLING, JobShape
from qwen_megatron.config.resolve import ResolvedConfig
from qwen_megatron.data.blended import BlendedSamples
from qwen_megatron.errors import ConfigError
from qwen_megatron.jobs.held_out import data_plan
from qwen_megatron.libraries import first_imports
from qwen_megatron.model.head_kinds import LANGUAGE_MODEL
from qwen_megatron.train.names import MAIN

if TYPE_CHECKING:
    from qwen_megatron.train.run import Hook


class JobKind(abc.ABC):
    """One kind of job.

    Attributes:
        name: Of its command.
        help: One line, beginning with a small letter.
        description: What the command does.
        examples: Commands, as its help shows them.
        shape: What the job makes of the model and of samples.
        heads: Of each model that it saves, by name.
        entry: `module:function`, imported only when the job starts; called with the resolved configuration and
            further hooks if there are any, it returns why it left early, None if it came to its end.
    """

    name: str
    help: str
    description: str
    examples: str
    entry: str
    shape: JobShape = LANGUAGE_MODELLING
    heads: Mapping[str, str] = MappingProxyType({MAIN: LANGUAGE_MODEL})

    def check_settings(self, sections: Sections, problems: Problems) -> None:  # noqa: B027 - not every job has rules
        """Rules of this job between settings, besides those that hold for all."""

    @abc.abstractmethod
    def check_data(self, sections: Sections, problems: Problems) -> list[str]:
        """What is wrong with the corpora, as far as the settings about them are good."""

    @abc.abstractmethod
    def sources(self, config: ResolvedConfig) -> Callable[[int], Mapping[str, Mapping[str, Any]]]:
        """What samples come from, after so many: see `data.protocol.Dataset.sources`.

        Raises:
            DataError: if a corpus cannot be opened.
        """

    def epoch_samples(self, config: ResolvedConfig) -> int:
        """Samples of one pass over what is trained on of all corpora together.

        Raises:
            ConfigError: if this job has no epochs.
            DataError: if a corpus cannot be opened.
        """
        raise ConfigError(f"training.train_epochs: {self.name} goes by steps; use null, and training.train_iters")

    def data_lines(self, config: ResolvedConfig) -> tuple[list[str], list[str]]:
        """Lines about what a run takes of each corpus, and warnings about it."""
        return [], []

    def warnings(self, config: ResolvedConfig) -> list[str]:
        """What to know before a start, a line each."""
        return []

    def run(self, config: ResolvedConfig, more_hooks: Sequence[Hook] = ()) -> str | None:
        """Runs the job on this rank, with hooks before its own; imports torch. Returns why it left early."""
        module, _, function = self.entry.partition(":")
        with first_imports():
            job = getattr(importlib.import_module(module), function)
        return cast(str | None, job(config, more_hooks) if more_hooks else job(config))


class BlendedJob(JobKind):
    """A job over a blend of corpora, of which `open` is all that differs."""

    @abc.abstractmethod
    def open(self, config: ResolvedConfig) -> BlendedSamples:
        """The samples of `data.blend`.

        Raises:
            DataError: if a corpus cannot be opened.
        """

    def sources(self, config: ResolvedConfig) -> Callable[[int], Mapping[str, Mapping[str, Any]]]:
        return self.open(config).sources

    def epoch_samples(self, config: ResolvedConfig) -> int:
        return sum(self.open(config).train_counts)

    def data_lines(self, config: ResolvedConfig) -> tuple[list[str], list[str]]:
        return data_plan(config, self.open(config))
