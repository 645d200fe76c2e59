"""Tests of scores, and correction for many tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from st_predict._errors import InvalidValueError
from st_predict.metrics._arrays import as_array, as_pvalues

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["PairedTest", "benjamini_hochberg", "bootstrap_pvalues", "paired_test"]


class PairedTest(NamedTuple):
    """Comparison of two predictors over genes.

    Examples
    --------
    >>> from st_predict.metrics import paired_test
    >>> difference, p_value, n_genes = paired_test([0.3, 0.4, 0.5], [0.2, 0.2, 0.2])
    >>> round(difference, 2), p_value, n_genes
    (0.2, 0.25, 3)
    """

    difference: float
    """Mean difference of scores over genes, first predictor minus second."""

    p_value: float
    """Two-sided p-value of the Wilcoxon signed-rank test; NaN without genes."""

    n_genes: int
    """Number of genes scored for both predictors."""


def paired_test(a: ArrayLike, b: ArrayLike) -> PairedTest:
    """Compare two predictors by their scores per gene, with the Wilcoxon signed-rank test :cite:p:`Wilcoxon1945`.

    Parameters
    ----------
    a, b
        Scores of the two predictors, ``(n_genes,)`` or ``(n_sections, n_genes)``; sections are averaged per gene. Pairs with
        NaN are left out.

    Returns
    -------
    PairedTest
        Mean difference, p-value and number of genes.

    Raises
    ------
    TypeError
        If an array is sparse.
    ValueError
        If an array is not numbers, is empty or infinite, is not one- or two-dimensional, or if the shapes differ.

    Notes
    -----
    Genes of a section share their spots, so they are not independent and the p-value is too small. The test is about
    the genes, not about other tissue; for that, use the interval of the difference from :func:`bootstrap_pearson` with the
    same blocks and seed for both predictors. Adjust p-values of several pairs of predictors with
    :func:`benjamini_hochberg`.

    Examples
    --------
    >>> from st_predict.metrics import paired_test
    >>> ours = [0.31, 0.42, 0.53, 0.24, 0.45, 0.36]
    >>> theirs = [0.30, 0.40, 0.50, 0.20, 0.40, 0.30]
    >>> test = paired_test(ours, theirs)
    >>> round(test.difference, 3), round(test.p_value, 3), test.n_genes
    (0.035, 0.031, 6)
    """
    from scipy.stats import wilcoxon

    shape = ("n_sections", "n_genes") if np.ndim(a) == 2 else ("n_genes",)
    pair = _differences(a, b, shape)
    difference = _mean_defined(np.atleast_2d(pair))
    difference = difference[~np.isnan(difference)]
    if not len(difference):
        return PairedTest(float("nan"), float("nan"), 0)
    # scipy warns if all differences are 0
    p = float(wilcoxon(difference).pvalue) if difference.any() else 1.0
    return PairedTest(float(difference.mean()), p, len(difference))


def bootstrap_pvalues(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Two-sided bootstrap p-value per gene of the difference of two predictors.

    Twice the share of resamples in which the difference is 0 or has the rarer sign. One resample is added, so no p-value
    is 0.

    Parameters
    ----------
    a, b
        Scores of the two predictors from the same resamples, ``(n_resamples, n_genes)``: results of
        :func:`bootstrap_pearson` with the same ``blocks``, ``n`` and ``seed``. NaN is undefined.

    Returns
    -------
    ndarray
        ``(n_genes,)``, at most 1; NaN for a gene that is undefined in all resamples. Adjust them for the number of
        genes with :func:`benjamini_hochberg`.

    Raises
    ------
    TypeError
        If an array is sparse.
    ValueError
        If an array is not numbers, is empty or infinite, is not two-dimensional, or if the shapes differ.

    Examples
    --------
    >>> from st_predict.metrics import bootstrap_pvalues
    >>> ours = [[0.5, 0.3]] * 60 + [[0.6, 0.1]] * 40  # 100 resamples, two genes
    >>> theirs = [[0.2, 0.2]] * 100
    >>> bootstrap_pvalues(ours, theirs).round(2)
    array([0.02, 0.81])
    """
    difference = _differences(a, b, ("n_resamples", "n_genes"))
    n = (~np.isnan(difference)).sum(axis=0)
    rarer = np.minimum((difference <= 0).sum(axis=0), (difference >= 0).sum(axis=0))
    return np.where(n > 0, np.minimum(2 * (rarer + 1) / (n + 1), 1), np.nan)


def benjamini_hochberg(p: ArrayLike) -> NDArray[np.float64]:
    """Adjust p-values so that a threshold on them bounds the false discovery rate :cite:p:`Benjamini1995`.

    Parameters
    ----------
    p
        P-values, ``(n_tests,)``; NaN is undefined and not counted as a test.

    Returns
    -------
    ndarray
        ``(n_tests,)``: adjusted p-values, NaN where ``p`` is.

    Raises
    ------
    TypeError
        If ``p`` is sparse.
    ValueError
        If ``p`` is not numbers, not one-dimensional, empty, or not between 0 and 1.

    Examples
    --------
    >>> from st_predict.metrics import benjamini_hochberg
    >>> benjamini_hochberg([0.01, 0.04, float("nan"), 0.03])
    array([0.03, 0.04,  nan, 0.04])
    """
    from scipy.stats import false_discovery_control

    p = as_pvalues(p)
    defined = ~np.isnan(p)
    adjusted = np.full(p.shape, np.nan)
    if defined.any():
        adjusted[defined] = false_discovery_control(p[defined])
    return adjusted


def _differences(a: ArrayLike, b: ArrayLike, shape: tuple[str, ...]) -> NDArray[np.float64]:
    a, b = (as_array(values, name, shape, undefined=True) for values, name in ((a, "a"), (b, "b")))
    if a.shape != b.shape:
        raise InvalidValueError(f"a and b must have the same shape, got {a.shape} and {b.shape}.")
    return a - b


def _mean_defined(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean per column over defined values; ``nanmean`` would warn about columns without any."""
    n = (~np.isnan(values)).sum(axis=0)
    return np.divide(np.nansum(values, axis=0), n, out=np.full(values.shape[1], np.nan), where=n > 0)
