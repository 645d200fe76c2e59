"""Tests of scores, and correction for many tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.stats import false_discovery_control, wilcoxon

from st_predict._errors import InvalidValueError
from st_predict.metrics._arrays import as_array

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["PairedTest", "benjamini_hochberg", "bootstrap_pvalues", "paired_test"]


class PairedTest(NamedTuple):
    """Comparison of two predictors over genes."""

    difference: float
    """Mean over genes of the score of the first predictor minus that of the second."""

    p_value: float
    """Two-sided p-value of the Wilcoxon signed-rank test; NaN without genes."""

    n_genes: int
    """Number of genes that both predictors have a score for."""


def paired_test(a: ArrayLike, b: ArrayLike) -> PairedTest:
    """Compare two predictors by their scores per gene, with the Wilcoxon signed-rank test :cite:p:`Wilcoxon1945`.

    Parameters
    ----------
    a, b
        Scores of the two predictors, ``(n_genes,)``, or ``(n_sections, n_genes)`` of which the mean per gene is compared.
        NaN is undefined: only pairs where both scores are defined count.

    Returns
    -------
    Mean difference, p-value and number of genes.

    Raises
    ------
    TypeError
        If an array is sparse.
    ValueError
        If an array is not numbers, is empty or infinite, is not one- or two-dimensional, or if the shapes differ.

    Notes
    -----
    Genes of a section share their spots, so they are not independent and the p-value is too small. It asks whether the
    difference is the rule among genes, not whether other tissue would show it; for that, take the interval of the
    difference from :func:`bootstrap_pearson` with the same blocks and seed for both. Correct the p-values of several
    pairs of predictors by :func:`benjamini_hochberg`.
    """
    shape = ("n_sections", "n_genes") if np.ndim(a) == 2 else ("n_genes",)
    pair = _differences(a, b, shape)
    difference = _mean_defined(np.atleast_2d(pair))
    difference = difference[~np.isnan(difference)]
    if not len(difference):
        return PairedTest(float("nan"), float("nan"), 0)
    # scipy warns where all differences are 0
    p = float(wilcoxon(difference).pvalue) if difference.any() else 1.0
    return PairedTest(float(difference.mean()), p, len(difference))


def bootstrap_pvalues(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Two-sided bootstrap p-value per gene of the difference of two predictors.

    Twice the share of resamples in which the difference has the rarer sign, or is 0; one resample is added to the count,
    so that no p-value is 0.

    Parameters
    ----------
    a, b
        Scores of the two predictors from the same resamples, ``(n_resamples, n_genes)``: results of
        :func:`bootstrap_pearson` with the same ``blocks``, ``n`` and ``seed``. NaN is undefined.

    Returns
    -------
    ``(n_genes,)``, at most 1; NaN for a gene that is undefined in all resamples. Correct it for the number of genes by
    :func:`benjamini_hochberg`.

    Raises
    ------
    TypeError
        If an array is sparse.
    ValueError
        If an array is not numbers, is empty or infinite, is not two-dimensional, or if the shapes differ.
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
        P-values, ``(n_tests,)``; NaN for tests that are undefined, which do not count.

    Returns
    -------
    ``(n_tests,)``: adjusted p-values, NaN where ``p`` is.

    Raises
    ------
    TypeError
        If ``p`` is sparse.
    ValueError
        If ``p`` is not numbers, not one-dimensional, empty, or not between 0 and 1.

    Examples
    --------
    >>> benjamini_hochberg([0.01, 0.04, float("nan"), 0.03])
    array([0.03, 0.04,  nan, 0.04])
    """
    p = as_array(p, "p", ("n_tests",), undefined=True)
    defined = ~np.isnan(p)
    if ((p[defined] < 0) | (p[defined] > 1)).any():
        raise InvalidValueError(f"p must be between 0 and 1, got values from {np.nanmin(p):g} to {np.nanmax(p):g}.")
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
