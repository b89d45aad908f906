"""Logistic regression by a quasi-Newton method: no learning rate, no random order, one optimum."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_tools import _native
from data_tools.quality.features import FeatureRows

Vector = npt.NDArray[np.float64]
_PAIRS_KEPT = 8
_SMALLEST_STEP = 2.0**-40


@dataclass(frozen=True)
class Fit:
    """What `fit` found."""

    weights: Vector
    """[columns]"""
    intercept: float
    objective: float
    """Per row."""
    iterations: int
    gradient_ratio: float
    """Norm of the gradient, of that at the start."""


def fit(
    rows: FeatureRows,
    labels: npt.NDArray[np.uint8],
    num_columns: int,
    *,
    l2: float,
    max_iterations: int,
    tolerance: float,
    threads: int = 1,
) -> Fit:
    """Fits a logistic regression: the weights w and the intercept b at the minimum of a sum:

        sum_i log(1 + exp(-y_i (w x_i + b))) + l2 / 2 |w|^2,  y_i = +1 or -1,

    The sum is convex, so the order of the rows does not count beyond rounding; every sum has a fixed order, so
    the number of threads does not count at all.

    Args:
        rows: [n, num_columns].
        labels: [n] 0 or 1.
        l2: above 0.
        max_iterations: most steps.
        tolerance: of the gradient's norm, relative to the start at 0.
    Raises:
        ValueError: rows, labels and num_columns do not fit together.
    Source: L-BFGS, Liu and Nocedal 1989.
    """
    loss = _native.LogisticLoss(rows.offsets, rows.columns, rows.values, labels, num_columns)

    def evaluate(point: Vector) -> tuple[float, Vector]:
        value, gradient = loss.evaluate(point, threads)
        gradient[:-1] += l2 * point[:-1]
        return value + l2 / 2 * _dot(point[:-1], point[:-1]), gradient

    point, value, iterations, ratio = minimise(evaluate, np.zeros(num_columns + 1), max_iterations, tolerance)
    return Fit(point[:-1], float(point[-1]), value / max(len(labels), 1), iterations, ratio)


def minimise(
    evaluate: Callable[[Vector], tuple[float, Vector]], point: Vector, max_iterations: int, tolerance: float
) -> tuple[Vector, float, int, float]:
    """L-BFGS with steps halved until they lower the objective enough (Armijo).

    Returns:
        The point, its objective, the steps taken, and the gradient's norm relative to that at the start.
    """
    value, gradient = evaluate(point)
    pairs: deque[tuple[Vector, Vector, float]] = deque(maxlen=_PAIRS_KEPT)  # step, change of gradient, product
    first = norm = _norm(gradient)
    for iteration in range(max_iterations):
        if norm <= tolerance * first:
            return point, value, iteration, norm / first if first else 0.0
        direction = _direction(gradient, pairs)
        slope = _dot(gradient, direction)
        length = 1.0 if pairs else 1.0 / norm
        while True:
            candidate = point + length * direction
            candidate_value, candidate_gradient = evaluate(candidate)
            if candidate_value <= value + 1e-4 * length * slope:
                break
            length /= 2
            if length < _SMALLEST_STEP:  # Rounding hides any further progress.
                return point, value, iteration, norm / first
        step, change = candidate - point, candidate_gradient - gradient
        product = _dot(step, change)
        if product > 0:
            pairs.append((step, change, product))
        point, value, gradient, norm = candidate, candidate_value, candidate_gradient, _norm(candidate_gradient)
    return point, value, max_iterations, norm / first if first else 0.0


def _direction(gradient: Vector, pairs: deque[tuple[Vector, Vector, float]]) -> Vector:
    """Minus the approximate inverse of the second derivatives times the gradient, by the two-loop recursion."""
    direction = -gradient
    factors = []
    for step, change, product in reversed(pairs):
        factors.append(_dot(step, direction) / product)
        direction -= factors[-1] * change
    if pairs:
        _, change, product = pairs[-1]
        direction *= product / _dot(change, change)
    for (step, change, product), factor in zip(pairs, reversed(factors), strict=True):
        direction += (factor - _dot(change, direction) / product) * step
    return direction


def _dot(first: Vector, second: Vector) -> float:
    # Not numpy.dot: BLAS splits its sums by the threads it has.
    return float(np.sum(first * second))


def _norm(vector: Vector) -> float:
    return _dot(vector, vector) ** 0.5
