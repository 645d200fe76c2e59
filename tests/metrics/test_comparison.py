"""Comparison of models against textbook values, scipy and statsmodels."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t, ttest_1samp, wilcoxon
from statsmodels.stats.multitest import multipletests

from st_predict.metrics import holm, mean_interval, rank_test, wilcoxon_tests

SCORES = np.random.default_rng(0).normal(size=(9, 4)) + np.arange(4) / 2


def test_ranks_and_the_formula_of_friedman() -> None:
    found = rank_test(SCORES)
    ranks = np.array([[1 + (row > value).sum() for value in row] for row in SCORES]).mean(axis=0)
    np.testing.assert_allclose(found.mean_ranks, ranks)
    n, k = SCORES.shape
    statistic = 12 * n / (k * (k + 1)) * ((ranks**2).sum() - k * (k + 1) ** 2 / 4)
    rng = np.random.default_rng(1)
    drawn = np.argsort(rng.random((20_000, n, k)), axis=2).mean(axis=1) + 1
    null = 12 * n / (k * (k + 1)) * ((drawn**2).sum(axis=1) - k * (k + 1) ** 2 / 4)
    assert found.p_value == pytest.approx((null >= statistic - 1e-9).mean(), abs=0.005)
    assert found.n_units == 9


@pytest.mark.parametrize(("k", "n", "expected"), [(4, 14, 1.25), (5, 8, 2.16), (2, 10, 0.62)])
def test_the_critical_difference_is_that_of_the_table(k: int, n: int, expected: float) -> None:
    """Critical values 2.569, 2.728 and 1.960 of Table 5a of Demsar (2006); 1.25 is the example in its text."""
    scores = np.random.default_rng(0).normal(size=(n, k))
    assert rank_test(scores).critical_difference == pytest.approx(expected, abs=0.005)


def test_ties_and_two_models() -> None:
    assert rank_test([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]).p_value == 1
    two = rank_test([[1.0, 0.0], [3.0, 2.0], [0.0, 5.0]])
    assert np.isnan(two.p_value)
    np.testing.assert_allclose(two.mean_ranks, [4 / 3, 5 / 3])
    np.testing.assert_allclose(rank_test([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]]).mean_ranks, [1.5, 1.5, 3])


def test_pairs_are_those_of_scipy_and_statsmodels() -> None:
    found = wilcoxon_tests(SCORES)
    pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    raw = [wilcoxon(SCORES[:, i], SCORES[:, j]).pvalue for i, j in pairs]
    expected = multipletests(raw, method="holm")[1]
    np.testing.assert_allclose([found[i, j] for i, j in pairs], expected)
    np.testing.assert_allclose(found, found.T)
    assert np.isnan(np.diag(found)).all()
    assert wilcoxon_tests([[1.0, 1.0], [2.0, 2.0]])[0, 1] == 1


def test_holm_is_that_of_statsmodels() -> None:
    p = np.random.default_rng(2).random(20) ** 3
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1])
    p[3] = np.nan
    defined = ~np.isnan(p)
    np.testing.assert_allclose(holm(p)[defined], multipletests(p[defined], method="holm")[1])
    assert np.isnan(holm(p)[3])
    assert np.isnan(holm([np.nan])).all()


def test_the_interval_is_that_of_the_t_test() -> None:
    values = SCORES[:, 0]
    expected = ttest_1samp(values, 0).confidence_interval(0.9)
    np.testing.assert_allclose(mean_interval(values, level=0.9), expected)
    np.testing.assert_allclose(mean_interval([*values, np.nan], level=0.9), expected)
    assert np.isnan(mean_interval([0.3])).all()
    assert t.ppf(0.975, 1) > 12  # two patients say little
    low, high = mean_interval([0.1, 0.2])
    assert high - low > 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rank_test([[1.0], [2.0]]), "at least two models"),
        (lambda: rank_test([[1.0, np.nan], [2.0, 1.0]]), "1 of 2 have"),
        (lambda: wilcoxon_tests([[1.0, 2.0]]), "1 of 1 have"),
        (lambda: rank_test(SCORES, alpha=1.5), "alpha must be"),
        (lambda: holm([0.5, 1.5]), "between 0 and 1, got values from 0.5 to 1.5"),
        (lambda: mean_interval([0.1, 0.2], level=2), "level must be"),
    ],
)
def test_invalid_scores(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
