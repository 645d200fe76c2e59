"""Tests of differences against scipy and statsmodels, and their error rates in simulations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.stats import wilcoxon
from statsmodels.stats.multitest import multipletests

from st_predict import metrics
from st_predict._errors import InvalidTypeError, InvalidValueError


def test_adjustment_is_that_of_statsmodels():
    p = np.random.default_rng(0).uniform(size=200) ** 3
    expected = multipletests(p, method="fdr_bh")[1]
    np.testing.assert_allclose(metrics.benjamini_hochberg(p), expected)
    gaps = np.insert(p, [0, 50, 200], np.nan)
    adjusted = metrics.benjamini_hochberg(gaps)
    np.testing.assert_array_equal(np.isnan(adjusted), np.isnan(gaps))
    np.testing.assert_allclose(adjusted[~np.isnan(gaps)], expected)
    assert np.isnan(metrics.benjamini_hochberg([np.nan])).all()
    np.testing.assert_allclose(metrics.benjamini_hochberg([0.0, 1.0]), [0, 1])


def test_paired_test_is_that_of_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.1, 0.2, (2, 80))
    result = metrics.paired_test(a, b)
    assert result == (pytest.approx((a - b).mean()), pytest.approx(wilcoxon(a, b).pvalue), 80)
    reverse = metrics.paired_test(b, a)
    assert reverse.difference == -result.difference
    assert reverse.p_value == pytest.approx(result.p_value)


def test_sections_are_averaged_per_gene_over_defined_pairs():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3, 40))
    expected = (a - b).mean(axis=0)
    expected[0] = (a - b)[1:, 0].mean()
    a[0, 0] = b[:, 1] = np.nan
    result = metrics.paired_test(a, b)
    assert result.n_genes == 39
    assert result.p_value == pytest.approx(wilcoxon(np.delete(expected, 1)).pvalue)


def test_equal_and_undefined_scores():
    assert metrics.paired_test([0.1, 0.2], [0.1, 0.2]) == (0, 1, 2)
    result = metrics.paired_test([np.nan, 1], [1, np.nan])
    assert np.isnan(result[:2]).all()
    assert result.n_genes == 0


def test_bootstrap_pvalues_find_the_genes_that_differ():
    rng = np.random.default_rng(0)
    true = rng.normal(size=(300, 100))
    noise = rng.normal(size=(2, 300, 100))
    noise[1, :, :20] *= 3  # the second predictor is worse for 20 genes
    blocks = np.arange(300) // 5
    a, b = (metrics.bootstrap_pearson(true + n, true, blocks, seed=0, n=999) for n in noise)
    p = metrics.bootstrap_pvalues(a, b)
    np.testing.assert_allclose(p[:20], 2 / 1000)
    assert (p[20:] < 0.1).mean() < 0.2
    found = metrics.benjamini_hochberg(p) < 0.05
    assert found[:20].all()
    assert found[20:].sum() <= 4
    np.testing.assert_allclose(metrics.bootstrap_pvalues(b, a), p)
    np.testing.assert_allclose(metrics.bootstrap_pvalues(a, a), 1)
    a[:, 0] = np.nan
    assert np.isnan(metrics.bootstrap_pvalues(a, b)).sum() == 1


def test_bad_input_is_refused_by_name():
    with pytest.raises(InvalidValueError, match=r"p must be between 0 and 1, got values from 0\.5 to 2"):
        metrics.benjamini_hochberg([0.5, 2])
    with pytest.raises(InvalidValueError, match=r"p must be \(n_tests,\)"):
        metrics.benjamini_hochberg([[0.5]])
    with pytest.raises(InvalidValueError, match=r"a and b must have the same shape, got \(2,\) and \(3,\)"):
        metrics.paired_test([1, 2], [1, 2, 3])
    with pytest.raises(InvalidValueError, match="b has 1 infinite"):
        metrics.paired_test([1, 2], [1, np.inf])
    with pytest.raises(InvalidValueError, match=r"a must be \(n_resamples, n_genes\)"):
        metrics.bootstrap_pvalues([1], [1])
    with pytest.raises(InvalidTypeError, match="a is sparse"):
        metrics.paired_test(csr_array(np.ones((2, 2))), np.ones((2, 2)))
