"""Features, scores, loss and gradient against their definitions; the optimum against its own."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools import _native
from data_tools.errors import DataError
from data_tools.quality import FeatureConfig
from data_tools.quality.features import FeatureRows, feature_rows, feature_scores
from data_tools.quality.logistic import fit
from data_tools.text.normalization import nfc
from tests.support import text_oracle as oracle
from tests.support.text_strategies import texts as any_text


@settings(max_examples=150, deadline=None)
@given(any_text(), st.integers(1, 4), st.integers(8, 24))
def test_features_and_scores_equal_the_oracle(text: str, max_ngram: int, bits: int) -> None:
    config = FeatureConfig(max_ngram=max_ngram, bits=bits)
    expected = oracle.ngram_features(nfc(text), max_ngram, bits)
    rows = feature_rows([text], config)
    assert dict(zip(rows.columns.tolist(), rows.values.tolist(), strict=True)) == expected
    assert rows.offsets.tolist() == [0, len(expected)]
    weights = np.random.default_rng(bits).standard_normal(1 << bits, dtype=np.float32)
    score = 0.0
    for bucket, value in expected.items():
        score += float(weights[bucket]) * value
    assert feature_scores([text], weights, config).tolist() == [score]


def test_a_row_has_length_one_and_buckets_of_all_n() -> None:
    rows = feature_rows(["a b a b", ""], FeatureConfig(max_ngram=3, bits=24))
    # a, b, a b, b a, a b a, b a b
    assert sorted(rows.values.tolist()) == pytest.approx(sorted(np.sqrt(np.array([2, 2, 2, 1, 1, 1]) / 9)))
    assert rows.offsets.tolist() == [0, 6, 6]


def test_batches_and_threads_do_not_count(texts: list[str]) -> None:
    config = FeatureConfig(bits=10)
    weights = np.random.default_rng(1).standard_normal(1 << 10, dtype=np.float32)
    alone = [feature_scores([text], weights, config)[0] for text in texts]
    assert feature_scores(texts, weights, config, threads=3).tolist() == alone
    one, many = (feature_rows(texts, config, threads) for threads in (1, 3))
    assert all(np.array_equal(getattr(one, name), getattr(many, name)) for name in ("offsets", "columns", "values"))


def random_rows(rng: np.random.Generator, count: int, columns: int) -> list[dict[int, float]]:
    return [
        {int(column): float(np.float32(rng.random())) for column in rng.choice(columns, rng.integers(0, 6), False)}
        for _ in range(count)
    ]


def as_arrays(rows: list[dict[int, float]]) -> FeatureRows:
    return FeatureRows(
        np.cumsum([0, *map(len, rows)], dtype=np.int64),
        np.array([column for row in rows for column in row], dtype=np.uint32),
        np.array([value for row in rows for value in row.values()], dtype=np.float32),
    )


def test_loss_and_gradient_equal_the_oracle_with_any_threads() -> None:
    rng = np.random.default_rng(3)
    rows, labels = random_rows(rng, 300, 200), rng.integers(0, 2, 300, dtype=np.uint8)
    weights = rng.standard_normal(201)
    arrays = as_arrays(rows)
    loss = _native.LogisticLoss(arrays.offsets, arrays.columns, arrays.values, labels, 200)
    value, gradient = loss.evaluate(weights, 1)
    expected_value, expected_gradient = oracle.logistic_loss(rows, labels.tolist(), weights.tolist())
    assert value == pytest.approx(expected_value, rel=1e-12)
    assert gradient == pytest.approx(np.array(expected_gradient), rel=1e-10, abs=1e-12)
    for threads in (2, 5):
        again, other = loss.evaluate(weights, threads)
        assert (again, other.tobytes()) == (value, gradient.tobytes())


def test_loss_of_certain_rows_does_not_overflow() -> None:
    rows = as_arrays([{0: 1.0}, {0: 1.0}])
    labels = np.array([1, 0], dtype=np.uint8)
    loss = _native.LogisticLoss(rows.offsets, rows.columns, rows.values, labels, 1)
    for weight in (1e6, -1e6):
        value, gradient = loss.evaluate(np.array([weight, 0.0]), 1)
        assert value == 1e6
        assert gradient.tolist() == [np.sign(weight), np.sign(weight)]


def test_the_fit_is_the_optimum() -> None:
    rng = np.random.default_rng(5)
    rows, labels = random_rows(rng, 200, 30), rng.integers(0, 2, 200, dtype=np.uint8)
    arrays = as_arrays(rows)
    found = fit(arrays, labels, 30, l2=0.5, max_iterations=500, tolerance=1e-7)
    _, gradient = oracle.logistic_loss(rows, labels.tolist(), [*found.weights.tolist(), found.intercept])
    assert np.array(gradient[:-1]) + 0.5 * found.weights == pytest.approx(0, abs=1e-5)
    assert gradient[-1] == pytest.approx(0, abs=1e-5)
    assert found.gradient_ratio <= 1e-7
    # The objective is strictly convex: there is one optimum, whatever the order of the rows.
    order = rng.permutation(200)
    other = fit(as_arrays([rows[i] for i in order]), labels[order], 30, l2=0.5, max_iterations=500, tolerance=1e-7)
    assert other.weights == pytest.approx(found.weights, abs=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offsets": [0, 1]}, "offsets has 2 values for 2 labels"),
        ({"offsets": [0, 3, 2]}, "offsets must ascend"),
        ({"offsets": [0, 1, 3]}, "offsets must lead from 0"),
        ({"columns": [0, 7]}, "column 7 of 2"),
        ({"columns": [0]}, "different lengths"),
        ({"labels": [0, 2]}, "labels must be 0 or 1"),
    ],
)
def test_rows_that_do_not_fit_are_refused(change: dict[str, list[int]], message: str) -> None:
    arguments = {"offsets": [0, 1, 2], "columns": [0, 1], "labels": [0, 1], **change}
    with pytest.raises(ValueError, match=message):
        _native.LogisticLoss(
            np.array(arguments["offsets"], dtype=np.int64),
            np.array(arguments["columns"], dtype=np.uint32),
            np.ones(2, dtype=np.float32),
            np.array(arguments["labels"], dtype=np.uint8),
            2,
        )


def test_bounds() -> None:
    with pytest.raises(DataError, match="bits=25 must be 8 to 24"):
        FeatureConfig(bits=25)
    with pytest.raises(DataError, match="max_ngram=0 must be 1 to 8"):
        FeatureConfig(max_ngram=0)
    with pytest.raises(ValueError, match=r"weights has 5 values, not 2\^8"):
        feature_scores(["a"], np.zeros(5, dtype=np.float32), FeatureConfig(bits=8))
