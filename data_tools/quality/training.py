"""From labelled texts to a model with honest figures: trained, calibrated and measured on three different parts."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import numpy.typing as npt

from data_tools.errors import DataError
from data_tools.quality.calibration import Calibration, as_table, auc, calibration_error, platt, reliability
from data_tools.quality.features import FeatureConfig, feature_rows
from data_tools.quality.logistic import fit
from data_tools.quality.model import QualityModel
from data_tools.text.normalized import normalized_hashes

# Of each label in each part; below it the figures say nothing.
_FEWEST_DOCUMENTS = 5


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a model is trained."""

    features: FeatureConfig = field(default_factory=FeatureConfig)
    l2: float = 0.1
    """Penalty l2 / 2 x |weights|^2 beside the loss summed over the texts, above 0."""
    held_out: float = 0.2
    """Share of the texts not trained on: half of it calibrates, the other half is what AUC and reliability are of."""
    max_iterations: int = 200
    tolerance: float = 1e-3
    """Training ends when the gradient's norm is this small, relative to the start."""

    def __post_init__(self) -> None:
        if not self.l2 > 0:
            raise DataError(f"quality: l2={self.l2} must be above 0")
        if not 0 < self.held_out < 1:
            raise DataError(f"quality: held_out={self.held_out} must be above 0 and below 1")


@dataclass(frozen=True)
class _Examples:
    texts: list[str]
    labels: npt.NDArray[np.uint8]
    rejected: Counter[str]


def train(examples: Iterable[tuple[str, bool]], config: TrainingConfig | None = None, threads: int = 1) -> QualityModel:
    """A model of texts and labels; it depends on the set of them alone, neither on their order nor on ``threads``.

    A text that comes again with the same label counts once, one that has both labels not at all. Parts are cut by the
    hash of the normalised text, so that copies of one text are on one side. The texts are held in memory, and 16
    bytes for each different n-gram of each.

    Args:
        examples: text, and whether it is a positive one.
    Raises:
        DataError: too few texts of a label in a part.
        UnicodeEncodeError: a text holds a lone surrogate.
    """
    config = config or TrainingConfig()
    known = _deduplicated(examples)
    places = normalized_hashes(known.texts, threads)[:, 0] / 2.0**64 if known.texts else np.empty(0)
    parts = {
        "test": places < config.held_out / 2,
        "calibration": (places >= config.held_out / 2) & (places < config.held_out),
        "training": places >= config.held_out,
    }
    counts = {name: _count(name, known.labels[chosen]) for name, chosen in parts.items()}
    model, progress = _fitted(_texts(known, parts["training"]), known.labels[parts["training"]], config, threads)
    calibration = platt(model.logits(_texts(known, parts["calibration"]), threads), known.labels[parts["calibration"]])
    labels = known.labels[parts["test"]]
    logits = model.logits(_texts(known, parts["test"]), threads)
    bins = reliability(calibration.probabilities(logits), labels)
    report = {
        "config": asdict(config),
        "documents": counts,
        "rejected": dict(sorted(known.rejected.items())),
        **progress,
        "auc": auc(logits, labels),
        "calibration_error": calibration_error(bins),
        "reliability": as_table(bins),
    }
    return replace(model, calibration=calibration, training=report)


def _deduplicated(examples: Iterable[tuple[str, bool]]) -> _Examples:
    """Each text once, in the order of their hashes: what follows does not know in which order they came."""
    labels: dict[bytes, tuple[str, set[bool]]] = {}
    num_examples = 0
    for text, label in examples:
        num_examples += 1
        digest = hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()
        labels.setdefault(digest, (text, set()))[1].add(label)
    used = [(text, min(found)) for _, (text, found) in sorted(labels.items()) if len(found) == 1]
    both = len(labels) - len(used)
    rejected = Counter(both_labels=both, duplicate=num_examples - len(labels))
    return _Examples([text for text, _ in used], np.array([label for _, label in used], dtype=np.uint8), +rejected)


def _texts(known: _Examples, chosen: npt.NDArray[np.bool_]) -> list[str]:
    return [known.texts[index] for index in np.flatnonzero(chosen)]


def _count(part: str, labels: npt.NDArray[np.uint8]) -> dict[str, int]:
    counts = {"positive": int(labels.sum()), "negative": int((labels == 0).sum())}
    for name, count in counts.items():
        if count < _FEWEST_DOCUMENTS:
            raise DataError(
                f"quality: {count} {name} documents for {part}, at least {_FEWEST_DOCUMENTS} are needed; give more "
                "documents or change held_out"
            )
    return counts


def _fitted(
    texts: list[str], labels: npt.NDArray[np.uint8], config: TrainingConfig, threads: int
) -> tuple[QualityModel, dict[str, float]]:
    rows, columns = feature_rows(texts, config.features, threads).without_empty_columns()
    found = fit(
        rows,
        labels,
        len(columns),
        l2=config.l2,
        max_iterations=config.max_iterations,
        tolerance=config.tolerance,
        threads=threads,
    )
    weights = np.zeros(1 << config.features.bits, dtype=np.float32)
    weights[columns] = found.weights
    progress = {
        "buckets_used": len(columns),
        "iterations": found.iterations,
        "gradient_ratio": found.gradient_ratio,
        "objective": found.objective,
    }
    return QualityModel(
        features=config.features,
        weights=weights,
        intercept=found.intercept,
        calibration=Calibration(slope=1.0, offset=0.0),
    ), progress
