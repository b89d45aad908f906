"""From logits to probabilities, and how far both can be trusted."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]
Labels = npt.NDArray[np.uint8]
_NEWTON_STEPS = 100
_SMALLEST_STEP = 1e-10


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """probability = 1 / (1 + exp(-(slope x logit + offset)))."""

    slope: float
    offset: float

    def probabilities(self, logits: Vector) -> Vector:
        """[n] probabilities, 0 to 1."""
        return np.exp(-np.logaddexp(0.0, -(self.slope * logits + self.offset)))


def platt(logits: Vector, labels: Labels) -> Calibration:
    """The calibration under which the labels of texts that were not trained on are most likely.

    Labels are drawn a little towards 1/2, as if there were one more text of each kind. If higher logits do not go
    with label 1, the model knows nothing that holds: then the slope is 0 and the probability is that of the label.

    Args:
        logits: [n].
        labels: [n] 0 or 1.
    Source: Platt 1999, "Probabilistic outputs for support vector machines"; Newton's method with halved steps after
    Lin, Lin and Weng 2007.
    """
    positive = int(labels.sum())
    negative = len(labels) - positive
    targets = np.where(labels == 1, (positive + 1) / (positive + 2), 1 / (negative + 2))

    def loss(parameters: Vector) -> float:
        z = parameters[0] * logits + parameters[1]
        return float(np.sum(np.logaddexp(0.0, z) - targets * z))

    parameters = np.array([0.0, float(np.log((positive + 1) / (negative + 1)))])
    for _ in range(_NEWTON_STEPS):
        probabilities = Calibration(slope=parameters[0], offset=parameters[1]).probabilities(logits)
        # Sums, not matrix products: BLAS splits those by the threads it has.
        residuals, curvature = probabilities - targets, probabilities * (1 - probabilities)
        gradient = np.array([np.sum(residuals * logits), np.sum(residuals)])
        if np.abs(gradient).max() < 1e-10 * len(labels):
            break
        mixed = np.sum(curvature * logits)
        second = np.array([[np.sum(curvature * logits**2), mixed], [mixed, np.sum(curvature)]])
        step = np.linalg.solve(second + 1e-12 * np.eye(2), -gradient)
        length, slope = 1.0, float(np.sum(gradient * step))
        while length > _SMALLEST_STEP and loss(parameters + length * step) > loss(parameters) + 1e-4 * length * slope:
            length /= 2
        if length <= _SMALLEST_STEP:
            break
        parameters = parameters + length * step
    if parameters[0] > 0:
        return Calibration(slope=float(parameters[0]), offset=float(parameters[1]))
    return Calibration(slope=0.0, offset=float(np.log((positive + 1) / (negative + 1))))


def auc(logits: Vector, labels: Labels) -> float:
    """Probability that a text of label 1 has a higher logit than one of label 0, a tie counting half.

    Source: the rank-sum statistic, Mann and Whitney 1947.
    """
    _, places, counts = np.unique(logits, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    positive = int(labels.sum())
    negative = len(labels) - positive
    return float((ranks[labels == 1].sum() - positive * (positive + 1) / 2) / (positive * negative))


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """Texts with scores of low to high: if scores are probabilities, mean_score and share_positive agree."""

    low: float
    high: float
    documents: int
    mean_score: float
    share_positive: float


def reliability(scores: Vector, labels: Labels, num_bins: int = 10) -> list[ReliabilityBin]:
    """The bins that have texts, ascending.

    Source: DeGroot and Fienberg 1983.
    """
    places = np.minimum((scores * num_bins).astype(np.int64), num_bins - 1)
    return [
        ReliabilityBin(
            low=place / num_bins,
            high=(place + 1) / num_bins,
            documents=int(chosen.sum()),
            mean_score=float(scores[chosen].mean()),
            share_positive=float(labels[chosen].mean()),
        )
        for place in range(num_bins)
        if (chosen := places == place).any()
    ]


def calibration_error(bins: Sequence[ReliabilityBin]) -> float:
    """Mean distance of mean_score and share_positive over all texts.

    Source: the expected calibration error of Naeini, Cooper and Hauskrecht 2015.
    """
    documents = sum(one.documents for one in bins)
    return sum(one.documents * abs(one.mean_score - one.share_positive) for one in bins) / max(documents, 1)


def as_table(bins: Sequence[ReliabilityBin]) -> list[dict[str, float]]:
    """For JSON."""
    return [asdict(one) for one in bins]
