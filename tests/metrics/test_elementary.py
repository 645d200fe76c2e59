from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.sparse import csr_array
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import mean_absolute_error, root_mean_squared_error

from st_predict import metrics
from st_predict._errors import InvalidValueError

CORRELATIONS = [metrics.pearson, metrics.spearman]
SCORES = [*CORRELATIONS, metrics.rmse, metrics.mae]

# Whole numbers over a power of two, so that adding and multiplying below is exact and ties stay ties.
matrices = arrays(np.float64, (7, 3), elements=st.integers(-1000, 1000).map(lambda i: i / 8))


def pairs(seed: int = 0, n_spots: int = 50, n_genes: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    true = rng.normal(size=(n_spots, n_genes))
    return true + rng.normal(size=true.shape) * np.arange(n_genes), true


def by_column(score, pred, true):
    return np.array([score(p, t) for p, t in zip(pred.T, true.T, strict=True)])


@pytest.mark.parametrize(
    ("ours", "other"),
    [
        (metrics.pearson, lambda p, t: pearsonr(p, t).statistic),
        (metrics.spearman, lambda p, t: spearmanr(p, t).statistic),
        (metrics.rmse, root_mean_squared_error),
        (metrics.mae, mean_absolute_error),
    ],
)
@pytest.mark.parametrize("decimals", [12, 0])  # 0: many ties
def test_same_as_scipy_and_sklearn(ours, other, decimals):
    pred, true = (x.round(decimals) for x in pairs())
    np.testing.assert_allclose(ours(pred, true, axis=0), by_column(other, pred, true), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(ours(pred, true, axis=1), by_column(other, pred.T, true.T), rtol=1e-12, atol=1e-12)


def test_by_hand():
    pred = np.array([[1, 1], [2, 1], [3, 4]])
    true = np.array([[1, 4], [3, 4], [2, 1]])
    # deviations (-1, 0, 1) and (-1, 1, 0): 1 / (sqrt(2) * sqrt(2)); the second gene is turned round
    np.testing.assert_allclose(metrics.pearson(pred, true, axis=0), [0.5, -1])
    # ranks of the second gene: (1.5, 1.5, 3) and (2.5, 2.5, 1)
    np.testing.assert_allclose(metrics.spearman(pred, true, axis=0), [0.5, -1])
    np.testing.assert_allclose(metrics.rmse(pred, true, axis=0), [np.sqrt(2 / 3), 3])
    np.testing.assert_allclose(metrics.mae(pred, true, axis=0), [2 / 3, 3])
    np.testing.assert_allclose(metrics.rmse(pred, true, axis=1), np.sqrt([4.5, 5, 5]))
    np.testing.assert_allclose(metrics.mae(pred, true, axis=1), [1.5, 2, 2])


@pytest.mark.parametrize(("offset", "spread"), [(1e6, 1), (-1e9, 1), (2.0**30, 2**-10)])
def test_offset_cancels(offset, spread):
    # on a raster that is representable beside the offset, while sums over spots are not
    pred, true = (np.round(x * spread * 2**22) / 2**22 for x in pairs(n_spots=2000))
    moved = metrics.pearson(pred + offset, true - offset, axis=0)
    np.testing.assert_allclose(moved, metrics.pearson(pred, true, axis=0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-200, 1e150])
def test_squares_that_would_vanish_or_overflow(scale):
    pred, true = pairs()
    scaled = metrics.pearson(pred * scale, true, axis=0)
    np.testing.assert_allclose(scaled, metrics.pearson(pred, true, axis=0), rtol=0, atol=1e-12)


def test_float32_is_summed_in_float64():
    pred, true = (x.astype(np.float32) for x in pairs(n_spots=20_000, n_genes=2))
    got = metrics.pearson(pred + np.float32(100), true, axis=0)
    want = by_column(lambda p, t: pearsonr(p, t).statistic, (pred + np.float32(100)).astype(float), true.astype(float))
    np.testing.assert_allclose(got, want, atol=1e-12)
    assert got.dtype == np.float64


@pytest.mark.parametrize("score", CORRELATIONS)
@pytest.mark.parametrize("value", [0.0, 0.1, 1e6 / 3, np.float32(0.1)])  # the mean of ten 0.1 is not 0.1
def test_constant_is_undefined_and_the_rest_is_not(score, value):
    pred, true = pairs(n_spots=10)
    pred[:, 2] = value
    r = score(pred, true, axis=0)
    assert np.flatnonzero(np.isnan(r)).tolist() == [2]
    r = score(true, pred, axis=0)
    assert np.flatnonzero(np.isnan(r)).tolist() == [2]


@pytest.mark.parametrize("score", CORRELATIONS)
def test_one_spot_is_undefined(score):
    assert np.isnan(score([[1.0, 2.0]], [[3.0, 1.0]], axis=0)).all()
    np.testing.assert_allclose(score([[1.0, 2.0]], [[3.0, 1.0]], axis=1), [-1])


@pytest.mark.parametrize("score", CORRELATIONS)
@given(a=matrices, b=matrices, axis=st.sampled_from([0, 1]))
def test_correlations_are_symmetric_and_at_most_one(score, a, b, axis):
    r = score(a, b, axis=axis)
    np.testing.assert_array_equal(r, score(b, a, axis=axis))
    assert (np.isnan(r) | (np.abs(r) <= 1)).all()
    constant = (np.ptp(a, axis=axis) == 0) | (np.ptp(b, axis=axis) == 0)
    np.testing.assert_array_equal(np.isnan(r), constant)


@pytest.mark.parametrize("score", CORRELATIONS)
@given(a=matrices, b=matrices, slope=st.sampled_from([0.25, 2, 3]), shift=st.integers(-(10**6), 10**6))
def test_correlations_ignore_affine_maps(score, a, b, slope, shift):
    r = score(a, b, axis=0)
    np.testing.assert_allclose(score(a * slope + shift, b, axis=0), r, atol=1e-9)
    np.testing.assert_allclose(score(a * -slope + shift, b, axis=0), -r, atol=1e-9)


@given(a=matrices, b=matrices)
def test_spearman_ignores_monotone_maps(a, b):
    np.testing.assert_allclose(metrics.spearman(a**3, np.arctan(b), axis=0), metrics.spearman(a, b, axis=0), atol=1e-12)


@given(a=matrices, b=matrices)
def test_errors_are_ordered_and_zero_for_itself(a, b):
    for axis in (0, 1):
        assert (metrics.mae(a, b, axis=axis) <= metrics.rmse(a, b, axis=axis) * (1 + 1e-12)).all()
        assert not metrics.rmse(a, a, axis=axis).any()
        assert not metrics.mae(a, a, axis=axis).any()


@pytest.mark.parametrize("score", SCORES)
def test_bad_input_is_refused_by_name(score):
    good = np.ones((3, 2))
    bad = good.copy()
    bad[1, 1] = np.nan
    with pytest.raises(ValueError, match="pred has 1 NaN or infinite values of 6"):
        score(bad, good, axis=0)
    with pytest.raises(ValueError, match="true has 1 NaN"):
        score(good, np.where(np.isnan(bad), np.inf, bad), axis=0)
    with pytest.raises(ValueError, match=r"same shape, got \(3, 2\) and \(2, 3\)"):
        score(good, good.T, axis=0)
    with pytest.raises(ValueError, match=r"must be \(n_spots, n_genes\) and not empty, got the shape \(3,\)"):
        score(good[:, 0], good[:, 0], axis=0)
    with pytest.raises(ValueError, match=r"not empty, got the shape \(0, 2\)"):
        score(good[:0], good[:0], axis=0)
    with pytest.raises(ValueError, match=r"axis must be 0 .* got 2"):
        score(good, good, axis=2)
    with pytest.raises(TypeError, match=r"true is sparse .*true\.toarray\(\)"):
        score(good, csr_array(good), axis=0)


def test_input_is_not_changed():
    pred, true = pairs()
    before = pred.copy(), true.copy()
    for score in SCORES:
        score(pred, true, axis=0)
    np.testing.assert_array_equal(pred, before[0])
    np.testing.assert_array_equal(true, before[1])


def test_every_score_has_one_sentence_of_definition():
    assert {"gene_pearson", "gene_spearman", "spot_pearson", "spot_rmse", "mae"} <= set(metrics.DEFINITIONS)
    for text in metrics.DEFINITIONS.values():
        assert text.endswith(".") and len(text) > 30


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("bad", [None, "text", [[1, 2], [3]], [["a", "b"]], 3])
def test_what_is_no_array_is_refused_by_name(score, bad):
    with pytest.raises(InvalidValueError, match=r"^pred (should|must) be"):
        score(bad, np.ones((3, 2)), axis=0)


@pytest.mark.parametrize("axis", [None, "0", 0.0, True, [0], np.zeros(2)])
def test_an_axis_is_a_whole_number(axis):
    with pytest.raises(InvalidValueError, match="axis must be 0"):
        metrics.pearson(np.ones((3, 2)), np.ones((3, 2)), axis=axis)
    assert len(metrics.mae(np.ones((3, 2)), np.ones((3, 2)), axis=np.int64(0))) == 2
