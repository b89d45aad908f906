"""What is known of a kind of job before torch is imported: its command, its rules, its data."""

from __future__ import annotations

import abc
import importlib
from collections.abc import Callable, Mapping
from typing import Any, cast

from data_tools.settings.problems import Problems
from qwen_megatron.config.fill import Sections
from qwen_megatron.config.resolve import ResolvedConfig
from qwen_megatron.train.names import MAIN


class JobKind(abc.ABC):
    """One kind of job.

    Attributes:
        name: Of its command.
        help: One line, beginning with a small letter.
        description: What the command does.
        examples: Commands, as its help shows them.
        entry: `module:function`, imported only when the job starts; called with the resolved configuration, it returns
            why it left early, None if it came to its end.
        trained: Names of the models that it trains.
    """

    name: str
    help: str
    description: str
    examples: str
    entry: str
    trained: tuple[str, ...] = (MAIN,)

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

    def data_lines(self, config: ResolvedConfig) -> tuple[list[str], list[str]]:
        """Lines about what a run takes of each corpus, and warnings about it."""
        return [], []

    def warnings(self, config: ResolvedConfig) -> list[str]:
        """What to know before a start, a line each."""
        return []

    def run(self, config: ResolvedConfig) -> str | None:
        """Runs the job on this rank; imports torch."""
        module, _, function = self.entry.partition(":")
        return cast(str | None, getattr(importlib.import_module(module), function)(config))
