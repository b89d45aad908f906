"""The stages that a pipeline file can name, each with its options."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_tools.engine.runner import Runner
from data_tools.engine.task import Manifest
from data_tools.filters.config import FilterConfig
from data_tools.pipeline.settings import rule
from data_tools.quality.model import MODEL_FILE, QualityModel
from data_tools.stages.decontaminate import DecontaminateStage
from data_tools.stages.exact_dedup import ExactDedupStage
from data_tools.stages.fuzzy_dedup import FuzzyDedupStage
from data_tools.stages.map import run_map
from data_tools.stages.mixture import MixtureStage
from data_tools.stages.read import ReadStage
from data_tools.stages.tokenize import TokenizeStage
from data_tools.text.languages import CODE


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
class QualityStage:
    """Options of the stage `quality`. Without min_score and pareto_alpha it scores and drops nothing.

    Attributes:
        model: folder that `qwen-data quality train` wrote.
        min_score: a document with a lower score goes.
        pareto_alpha: a document stays if a draw from the Lomax distribution with this shape is above 1 - score: most
            good ones, and a few of any score; 9 is GPT-3's. The draw depends on the text and the seed alone.
        seed: another seed draws otherwise.
        skip_languages: documents that the model is not made for; they stay, without a score.
    """

    model: str = rule(
        lambda value: Path(value, MODEL_FILE).is_file(), "must be the folder of a model (qwen-data quality train)"
    )
    min_score: float | None = rule(lambda value: value is None or 0 <= value <= 1, "must be 0 to 1 or null", None)
    pareto_alpha: float | None = rule(lambda value: value is None or value > 0, "must be above 0 or null", None)
    seed: int = rule(lambda value: 0 <= value < 2**64, "must be 0 to 2^64 - 1", 1234)
    skip_languages: tuple[str, ...] = (CODE,)

    def run(self, runner: Runner, folder: Path, inputs: Sequence[Manifest]) -> list[Manifest]:
        """One task for each part; another model does them again."""
        checksum = QualityModel.load(Path(self.model)).checksum
        return run_map(runner, folder, inputs, "quality", {**asdict(self), "checksum": checksum})


@dataclass(frozen=True, kw_only=True)
class SampleStage:
    """Options of the stage `sample`: how often each document is in the corpus, 0 times, once, or repeated.

    The fraction of its source, the factor of its quality and that of its cluster size are multiplied and capped; of 2.3
    a document has two copies, and a third one by chance (its hash). Values below the lowest band have factor 1, and so
    have documents without a score.

    Attributes:
        fractions: source -> share of its documents that stays, 0 to 1; other sources stay whole.
        quality: bands [least score, factor] of the score that the stage `quality` gives.
        cluster_size: bands [least size, factor] of the number of documents that one stands for after deduplication.
        max_epochs: a document has at most this many copies.
        seed: another seed chooses other documents.
    """

    fractions: Mapping[str, float] = field(
        default_factory=dict,
        metadata={"rule": (lambda value: all(share <= 1 for share in value.values()), "must be shares of 0 to 1")},
    )
    quality: tuple[tuple[float, float], ...] = rule(
        lambda value: _are_bands(value, 0, 1), "must be bands [least score, factor], scores 0 to 1, each once", ()
    )
    cluster_size: tuple[tuple[float, float], ...] = rule(
        lambda value: _are_bands(value, 1, 2**63), "must be bands [least size, factor], sizes from 1, each once", ()
    )
    max_epochs: int = rule(lambda value: 1 <= value <= 1000, "must be 1 to 1000", 4)
    seed: int = rule(lambda value: 0 <= value < 2**64, "must be 0 to 2^64 - 1", 1234)

    def run(self, runner: Runner, folder: Path, inputs: Sequence[Manifest]) -> list[Manifest]:
        """See `pipeline_file.Stage`."""
        return run_map(runner, folder, inputs, "sample", asdict(self))


def _are_bands(bands: Sequence[tuple[float, float]], low: float, high: float) -> bool:
    starts = [start for start, _ in bands]
    return len(set(starts)) == len(starts) and all(low <= start <= high and factor >= 0 for start, factor in bands)


STAGES: dict[str, type[Any]] = {
    "read": ReadStage,
    "normalise": NormaliseStage,
    "language": LanguageStage,
    "filter": FilterStage,
    "exact_dedup": ExactDedupStage,
    "fuzzy_dedup": FuzzyDedupStage,
    "decontaminate": DecontaminateStage,
    "quality": QualityStage,
    "sample": SampleStage,
    "tokenize": TokenizeStage,
    "mixture": MixtureStage,
}

# Kind -> the kind that must come before it.
NEEDS = {"fuzzy_dedup": "exact_dedup", "mixture": "tokenize"}
