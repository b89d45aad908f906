"""The stages that a pipeline file can name, each with its options."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Interval

from data_tools.engine.runner import Runner
from data_tools.engine.task import Manifest
from data_tools.filters.config import FilterConfig
from data_tools.quality.model import MODEL_FILE, QualityModel
from data_tools.settings.records import Positive, Rule, Seed64, Share, record
from data_tools.stages.decontaminate import DecontaminateStage
from data_tools.stages.exact_dedup import ExactDedupStage
from data_tools.stages.fuzzy_dedup import FuzzyDedupStage
from data_tools.stages.map import run_map
from data_tools.stages.mixture import MixtureStage
from data_tools.stages.read import ReadStage
from data_tools.stages.tokenize import TokenizeStage
from data_tools.text.languages import CODE

Bands = tuple[tuple[float, float], ...]


def _are_bands(bands: Bands, low: float, high: float) -> bool:
    starts = [start for start, _ in bands]
    return len(set(starts)) == len(starts) and all(low <= start <= high and factor >= 0 for start, factor in bands)


def _are_shares(bands: Bands) -> bool:
    return _are_bands(bands, 0, 1)


def _are_sizes(bands: Bands) -> bool:
    return _are_bands(bands, 1, 2**63)


def _is_model(folder: str) -> bool:
    return Path(folder, MODEL_FILE).is_file()


@record
class NormaliseStage:
    """Options of the stage `normalise`: none. Texts are brought to Unicode normalisation form C."""

    def run(self, runner: Runner, folder: Path, inputs: Sequence[Manifest]) -> list[Manifest]:
        """See `pipeline_file.Stage`."""
        return run_map(runner, folder, inputs, "normalise", {})


@record
class LanguageStage:
    """Options of the stage `language`."""

    keep: tuple[str, ...] = ()
    """Languages that stay, "code" among them; empty for all."""
    min_score: Share = 0.65
    """Least probability of the language."""

    def run(self, runner: Runner, folder: Path, inputs: Sequence[Manifest]) -> list[Manifest]:
        """See `pipeline_file.Stage`."""
        return run_map(runner, folder, inputs, "language", asdict(self))


@record
class FilterStage:
    """Options of the stage `filter`."""

    rules: FilterConfig = field(default_factory=FilterConfig)
    """The rule filters and their thresholds; a filter or a threshold that is null is left out."""
    skip_languages: tuple[str, ...] = (CODE,)
    """Documents that the rules are not made for."""

    def run(self, runner: Runner, folder: Path, inputs: Sequence[Manifest]) -> list[Manifest]:
        """See `pipeline_file.Stage`."""
        return run_map(runner, folder, inputs, "filter", asdict(self))


@record
class QualityStage:
    """Options of the stage `quality`. Without min_score and pareto_alpha it scores and drops nothing."""

    model: Annotated[str, Rule(_is_model, "must be the folder of a model (qwen-data quality train)")]
    """Folder that `qwen-data quality train` wrote."""
    min_score: Share | None = None
    """A document with a lower score goes."""
    pareto_alpha: Positive | None = None
    """A document stays if a draw from the Lomax distribution with this shape is above 1 - score: most good ones,
    and a few of any score; 9 is GPT-3's. The draw depends on the text and the seed alone."""
    seed: Seed64 = 1234
    """Another seed draws otherwise."""
    skip_languages: tuple[str, ...] = (CODE,)
    """Documents that the model is not made for; they stay, without a score."""

    def run(self, runner: Runner, folder: Path, inputs: Sequence[Manifest]) -> list[Manifest]:
        """One task for each part; another model does them again."""
        checksum = QualityModel.load(Path(self.model)).checksum
        return run_map(runner, folder, inputs, "quality", {**asdict(self), "checksum": checksum})


@record
class SampleStage:
    """Options of the stage `sample`: how often each document is in the corpus, 0 times, once, or repeated.

    The fraction of its source, the factor of its quality and that of its cluster size are multiplied and capped; of 2.3
    a document has two copies, and a third one by chance (its hash). Values below the lowest band have factor 1, and so
    have documents without a score.
    """

    fractions: Mapping[str, Share] = field(default_factory=dict)
    """Source -> share of its documents that stays, 0 to 1; other sources stay whole."""
    quality: Annotated[Bands, Rule(_are_shares, "must be bands [least score, factor], scores 0 to 1, each once")] = ()
    """Bands [least score, factor] of the score that the stage `quality` gives."""
    cluster_size: Annotated[Bands, Rule(_are_sizes, "must be bands [least size, factor], sizes from 1, each once")] = ()
    """Bands [least size, factor] of the number of documents that one stands for after deduplication."""
    max_epochs: Annotated[int, Interval(ge=1, le=1000)] = 4
    """A document has at most this many copies."""
    seed: Seed64 = 1234
    """Another seed chooses other documents."""

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
    "quality": QualityStage,
    "sample": SampleStage,
    "tokenize": TokenizeStage,
    "mixture": MixtureStage,
}

# Kind -> the kind that must come before it.
NEEDS = {"fuzzy_dedup": "exact_dedup", "mixture": "tokenize"}
