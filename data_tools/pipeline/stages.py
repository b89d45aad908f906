"""The stages that a pipeline file can name, each with its options."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_tools.filters.config import FilterConfig
from data_tools.languages import CODE
from data_tools.pipeline.decontaminate_stage import DecontaminateStage
from data_tools.pipeline.exact_dedup_stage import ExactDedupStage
from data_tools.pipeline.fuzzy_dedup_stage import FuzzyDedupStage
from data_tools.pipeline.map_stage import run_map
from data_tools.pipeline.mixture_stage import MixtureStage
from data_tools.pipeline.read_stage import ReadStage
from data_tools.pipeline.runner import Runner
from data_tools.pipeline.settings import rule
from data_tools.pipeline.task import Manifest
from data_tools.pipeline.tokenize_stage import TokenizeStage


@dataclass(frozen=True, kw_only=True)
class NormaliseStage:
    """Options of the stage `normalise`: none. Texts are brought to Unicode normalisation form C."""

    def run(self, runner: Runner, folder: Path, inputs: Sequence[Manifest]) -> list[Manifest]:
        """See `pipeline_file.Stage`."""
        return run_map(runner, folder, inputs, "normalise", {})


@dataclass(frozen=True, kw_only=True)
class LanguageStage:
    """Options of the stage `language`.

    Attributes:
        keep: languages that stay, "code" among them; empty for all.
        min_score: least probability of the language.
    """

    keep: tuple[str, ...] = ()
    min_score: float = rule(lambda value: 0 <= value <= 1, "must be 0 to 1", 0.65)

    def run(self, runner: Runner, folder: Path, inputs: Sequence[Manifest]) -> list[Manifest]:
        """See `pipeline_file.Stage`."""
        return run_map(runner, folder, inputs, "language", asdict(self))


@dataclass(frozen=True, kw_only=True)
class FilterStage:
    """Options of the stage `filter`.

    Attributes:
        rules: the rule filters and their thresholds; a filter or a threshold that is null is left out.
        skip_languages: documents that the rules are not made for.
    """

    rules: FilterConfig = field(default_factory=FilterConfig)
    skip_languages: tuple[str, ...] = (CODE,)

    def run(self, runner: Runner, folder: Path, inputs: Sequence[Manifest]) -> list[Manifest]:
        """See `pipeline_file.Stage`."""
        return run_map(runner, folder, inputs, "filter", asdict(self))


@dataclass(frozen=True, kw_only=True)
class SampleStage:
    """Options of the stage `sample`.

    Attributes:
        fractions: source -> share of its documents that stays, 0 to 1; other sources stay whole.
        seed: another seed chooses other documents.
    """

    fractions: Mapping[str, float] = rule(
        lambda value: all(share <= 1 for share in value.values()), "must be shares of 0 to 1"
    )
    seed: int = rule(lambda value: 0 <= value < 2**64, "must be 0 to 2^64 - 1", 1234)

    def run(self, runner: Runner, folder: Path, inputs: Sequence[Manifest]) -> list[Manifest]:
        """See `pipeline_file.Stage`."""
        return run_map(runner, folder, inputs, "sample", asdict(self))


STAGES: dict[str, type[Any]] = {
    "read": ReadStage,
    "normalise": NormaliseStage,
    "language": LanguageStage,
    "filter": FilterStage,
    "exact_dedup": ExactDedupStage,
    "fuzzy_dedup": FuzzyDedupStage,
    "decontaminate": DecontaminateStage,
    "sample": SampleStage,
    "tokenize": TokenizeStage,
    "mixture": MixtureStage,
}

# Kind -> the kind that must come before it.
NEEDS = {"fuzzy_dedup": "exact_dedup", "mixture": "tokenize"}
