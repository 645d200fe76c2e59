"""Partial correlation against scipy and statsmodels, and a limit that depth cannot reach."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.sparse import csr_array
from scipy.stats import pearsonr

from st_predict import metrics
from st_predict._errors import InvalidTypeError, InvalidValueError


def with_depth(seed: int = 0, n_spots: int = 60, n_genes: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Prediction and observation that share depth, a parabola of it, and something else."""
    rng = np.random.default_rng(seed)
    totals = np.round(np.exp(rng.normal(7, 1, n_spots)))
    depth = np.log(totals)[:, None]
    shared = rng.normal(size=(n_spots, n_genes))
    pred, true = (depth**2 - 3 * depth + shared + rng.normal(size=shared.shape) for _ in range(2))
    return pred, true, totals


@pytest.mark.parametrize("k", [1, 2, 4])
def test_same_as_correlation_of_residuals_of_statsmodels(k):
    pred, true, _ = with_depth()
    covariates = np.random.default_rng(1).normal(size=(60, k)) + pred[:, :1]
    design = sm.add_constant(covariates)
    expected = [
        pearsonr(sm.OLS(p, design).fit().resid, sm.OLS(t, design).fit().resid).statistic
        for p, t in zip(pred.T, true.T, strict=True)
    ]
    np.testing.assert_allclose(metrics.partial_pearson(pred, true, covariates), expected, atol=1e-12)
    transposed = metrics.partial_pearson(pred.T, true.T, covariates, axis=1)
    np.testing.assert_allclose(transposed, expected, atol=1e-12)


def test_same_as_the_formula_for_one_covariate():
    pred, true, totals = with_depth(n_genes=1)
    depth = np.log(totals)
    xy, xz, yz = (
        pearsonr(a, b).statistic for a, b in ((pred[:, 0], true[:, 0]), (pred[:, 0], depth), (true[:, 0], depth))
    )
    expected = (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))
    np.testing.assert_allclose(metrics.partial_pearson(pred, true, depth[:, None]), [expected], atol=1e-12)


def test_depth_covariates_are_log_total_and_its_square():
    pred, true, totals = with_depth()
    covariates = metrics.depth_covariates(totals)
    np.testing.assert_allclose(covariates.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(covariates.std(axis=0), 1, atol=1e-12)
    raw = np.column_stack([np.log(totals), np.log(totals) ** 2])
    expected = metrics.partial_pearson(pred, true, raw)
    np.testing.assert_allclose(metrics.partial_pearson(pred, true, covariates), expected, atol=1e-9)


def test_a_predictor_of_depth_has_a_plain_correlation_only():
    rng = np.random.default_rng(0)
    totals = np.exp(rng.normal(7, 1, 20_000))
    true = np.log1p(rng.poisson(totals[:, None] * [1e-3, 1e-2]))
    pred = np.log(totals)[:, None] + rng.normal(size=true.shape) * 0.1
    assert (metrics.pearson(pred, true, axis=0) > 0.6).all()
    # the mean of log1p of a Poisson count is not quite a parabola of log depth
    assert (np.abs(metrics.partial_pearson(pred, true, metrics.depth_covariates(totals))) < 0.03).all()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_constant_columns_and_functions_of_the_covariates_are_undefined(dtype):
    pred, true, totals = with_depth()
    covariates = metrics.depth_covariates(totals)
    pred[:, 1] = 0.1
    pred[:, 3] = np.log(totals) * 2 + 5
    for pair in ((pred, true), (true, pred)):
        r = metrics.partial_pearson(*(values.astype(dtype) for values in pair), covariates)
        assert np.flatnonzero(np.isnan(r)).tolist() == [1, 3]


def test_too_few_spots_are_undefined():
    pred, true, totals = with_depth(n_spots=5)
    covariates = metrics.depth_covariates(totals)
    assert not np.isnan(metrics.partial_pearson(pred, true, covariates)).any()
    assert np.isnan(metrics.partial_pearson(pred[:4], true[:4], covariates[:4])).all()
    assert np.isnan(metrics.partial_pearson(pred[:2], true[:2], covariates[:2])).all()


def test_collinear_and_constant_covariates_change_nothing():
    pred, true, totals = with_depth()
    depth = np.log(totals)[:, None]
    expected = metrics.partial_pearson(pred, true, depth)
    more = np.hstack([depth, 3 * depth + 1, np.full_like(depth, 0.1)])
    np.testing.assert_allclose(metrics.partial_pearson(pred, true, more), expected, atol=1e-9)
    same = metrics.depth_covariates(np.full(60, 500))
    assert not same.any()
    np.testing.assert_allclose(
        metrics.partial_pearson(pred, true, same), metrics.pearson(pred, true, axis=0), atol=1e-12
    )


def test_scale_and_offset_of_the_prediction_cancel():
    pred, true, totals = with_depth()
    covariates = metrics.depth_covariates(totals)
    expected = metrics.partial_pearson(pred, true, covariates)
    np.testing.assert_allclose(metrics.partial_pearson(pred * 1e-150, true, covariates), expected, atol=1e-9)
    np.testing.assert_allclose(metrics.partial_pearson(pred + 1e6, true, covariates), expected, atol=1e-8)


def test_bad_input_is_refused_by_name():
    good = np.ones((6, 2))
    with pytest.raises(InvalidValueError, match="covariates must have one row per spot, got 5 rows for 6 spots"):
        metrics.partial_pearson(good, good, np.ones((5, 1)))
    with pytest.raises(InvalidValueError, match="covariates must have one row per gene, got 5 rows for 2 genes"):
        metrics.partial_pearson(good, good, np.ones((5, 1)), axis=1)
    with pytest.raises(InvalidValueError, match=r"covariates must be \(n_spots, k\)"):
        metrics.partial_pearson(good, good, np.ones(6))
    with pytest.raises(InvalidValueError, match="covariates has 6 NaN"):
        metrics.partial_pearson(good, good, np.full((6, 1), np.nan))
    with pytest.raises(InvalidTypeError, match="covariates is sparse"):
        metrics.partial_pearson(good, good, csr_array(good))
    with pytest.raises(InvalidValueError, match="axis must be 0"):
        metrics.partial_pearson(good, good, good, axis=2)
    with pytest.raises(
        InvalidValueError, match=r"totals must be above 0, but 1 of 2 values are not\. Leave these spots"
    ):
        metrics.depth_covariates([0, 3])
    with pytest.raises(InvalidValueError, match=r"totals must be \(n_spots,\)"):
        metrics.depth_covariates([[1, 3]])


def test_share_above_leaves_out_undefined_genes():
    assert metrics.share_above([0.5, 0.3, np.nan, 0.1]) == pytest.approx(1 / 3)  # 0.3 is not above 0.3
    assert metrics.share_above([0.5, 0.3, np.nan, 0.1], 0.0) == 1
    assert np.isnan(metrics.share_above([np.nan, np.nan]))
    with pytest.raises(InvalidValueError, match="scores has 1 infinite values of 2"):
        metrics.share_above([np.inf, 1])
    with pytest.raises(InvalidValueError, match="threshold must be a number"):
        metrics.share_above([1], "0.3")
    with pytest.raises(InvalidValueError, match=r"scores must be \(n_genes,\)"):
        metrics.share_above([[1]])
