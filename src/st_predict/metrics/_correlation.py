"""Correlations of prediction and observation, plain and given sequencing depth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from st_predict._errors import InvalidValueError
from st_predict._validated import Number, check
from st_predict.metrics._arrays import as_array, as_pair, check_axis

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["depth_covariates", "partial_pearson", "pearson", "share_above", "spearman", "standardize", "unit_variance"]

SMALLEST = 1e-6
"""Smallest share of a column's spread left after regression; less is rounding error, even in float32."""


def pearson(pred: ArrayLike, true: ArrayLike, *, axis: Literal[0, 1]) -> NDArray[np.float64]:
    """Pearson correlation per gene or per spot.

    ``sum(dp * dt) / sqrt(sum(dp**2) * sum(dt**2))`` with ``dp = pred - mean(pred)`` and ``dt = true - mean(true)``, all
    along ``axis``.

    Parameters
    ----------
    pred, true
        Prediction and observation, ``(n_spots, n_genes)``.
    axis
        Axis to run over. 0: over spots, one score per gene. 1: over genes, one score per spot.

    Returns
    -------
    ndarray
        ``(n_genes,)`` or ``(n_spots,)``, from -1 to 1; NaN where ``pred`` or ``true`` is constant.

    Raises
    ------
    TypeError
        If an array is sparse.
    ValueError
        If the arrays are not numbers, not two-dimensional, are empty, differ in shape, or hold NaN or infinite values.

    Examples
    --------
    >>> from st_predict.metrics import pearson
    >>> true = [[1, 4], [2, 2], [3, 6]]  # three spots, two genes
    >>> pred = [[1, 3], [2, 3], [4, 3]]
    >>> pearson(pred, true, axis=0).round(2)  # the second prediction is constant
    array([0.98,  nan])
    """
    check_axis(axis)
    pred, true = as_pair(pred, true)
    return _pearson(pred, true, axis=axis)


def spearman(pred: ArrayLike, true: ArrayLike, *, axis: Literal[0, 1]) -> NDArray[np.float64]:
    """Spearman correlation per gene or per spot.

    The Pearson correlation of the ranks along ``axis``; ties share their mean rank.

    Parameters
    ----------
    pred, true
        Prediction and observation, ``(n_spots, n_genes)``.
    axis
        Axis to run over. 0: over spots, one score per gene. 1: over genes, one score per spot.

    Returns
    -------
    ndarray
        ``(n_genes,)`` or ``(n_spots,)``, from -1 to 1; NaN where ``pred`` or ``true`` is constant.

    Raises
    ------
    TypeError
        If an array is sparse.
    ValueError
        If the arrays are not numbers, not two-dimensional, are empty, differ in shape, or hold NaN or infinite values.

    Examples
    --------
    >>> from st_predict.metrics import spearman
    >>> spearman([[1], [10], [100]], [[1], [2], [3]], axis=0)  # only the order matters
    array([1.])
    """
    from scipy.stats import rankdata

    check_axis(axis)
    pred, true = as_pair(pred, true)
    return _pearson(rankdata(pred, axis=axis), rankdata(true, axis=axis), axis=axis)


def partial_pearson(
    pred: ArrayLike, true: ArrayLike, covariates: ArrayLike, *, axis: Literal[0, 1] = 0
) -> NDArray[np.float64]:
    """Partial correlation given covariates, per gene or per spot.

    Prediction and observation are each regressed on ``covariates`` by least squares with an intercept; the result is the
    Pearson correlation of the residuals. With :func:`depth_covariates` it is the agreement beyond sequencing depth.

    Parameters
    ----------
    pred, true
        Prediction and observation, ``(n_spots, n_genes)``.
    covariates
        Covariates to regress out, ``(n_spots, k)``; with ``axis=1``, ``(n_genes, k)``. Collinear columns are accepted.
    axis
        Axis to run over. 0: over spots, one score per gene. 1: over genes, one score per spot.

    Returns
    -------
    ndarray
        ``(n_genes,)`` or ``(n_spots,)``, from -1 to 1. NaN where ``pred`` or ``true`` is constant or a linear function
        of the covariates (residual spread below 1e-6 of the original), and everywhere with fewer than ``k + 3`` spots.

    Raises
    ------
    TypeError
        If an array is sparse.
    ValueError
        If the arrays are not numbers, not two-dimensional, are empty, differ in shape or length, or hold NaN or infinite
        values.

    Examples
    --------
    >>> from st_predict.metrics import depth_covariates, partial_pearson, pearson
    >>> totals = [10, 20, 40, 80, 160]
    >>> true, pred = [[1], [2], [4], [3], [5]], [[1], [3], [2], [4], [5]]
    >>> pearson(pred, true, axis=0).round(2)
    array([0.7])
    >>> partial_pearson(pred, true, depth_covariates(totals)).round(2)  # the agreement was depth only
    array([-0.56])
    """
    check_axis(axis)
    pred, true = as_pair(pred, true)
    if axis == 1:
        pred, true = pred.T, true.T
    covariates = as_array(covariates, "covariates", ("n_spots", "k"))
    n, k = covariates.shape
    if n != len(pred):
        unit = "gene" if axis == 1 else "spot"
        raise InvalidValueError(f"covariates must have one row per {unit}, got {n} rows for {len(pred)} {unit}s.")
    if n < k + 3:
        return np.full(pred.shape[1], np.nan)
    basis = _basis(covariates)
    a, b = (_residuals(values, basis) for values in (pred, true))
    return _pearson(a, b, axis=0)


def depth_covariates(totals: ArrayLike) -> NDArray[np.float64]:
    """Log total count and its square, as covariates of :func:`partial_pearson`.

    Parameters
    ----------
    totals
        Total count of each spot over all genes of the table, ``(n_spots,)``.

    Returns
    -------
    ndarray
        ``(n_spots, 2)``: the standardised log total, and its standardised square. With an intercept, regression on them
        equals regression on the log total and its square. A constant column is 0.

    Raises
    ------
    TypeError
        If ``totals`` is sparse.
    ValueError
        If ``totals`` is not numbers, not one-dimensional, empty, or has values that are not above 0.

    Examples
    --------
    >>> from st_predict.metrics import depth_covariates
    >>> depth_covariates([100, 200, 800]).round(2)
    array([[-1.07,  0.2 ],
           [-0.27, -1.31],
           [ 1.34,  1.11]])
    """
    totals = as_array(totals, "totals", ("n_spots",))
    n_bad = int((totals <= 0).sum())
    if n_bad:
        raise InvalidValueError(
            f"totals must be above 0, but {n_bad} of {len(totals)} values are not.", "leave these spots out"
        )
    depth = unit_variance(np.log(totals)[:, None])
    return np.hstack([depth, unit_variance(depth**2)])


def share_above(scores: ArrayLike, threshold: float = 0.3) -> float:
    """Share of genes with a score above a threshold.

    Parameters
    ----------
    scores
        Score per gene, ``(n_genes,)``; NaN where undefined.
    threshold
        Threshold that a score must exceed.

    Returns
    -------
    float
        Share of the genes with a defined score, from 0 to 1; NaN if no gene has one.

    Raises
    ------
    TypeError
        If ``scores`` is sparse.
    ValueError
        If ``scores`` is not numbers, not one-dimensional, empty or infinite, or ``threshold`` is not a finite number.

    Examples
    --------
    >>> from st_predict.metrics import share_above
    >>> share_above([0.5, 0.2, float("nan"), 0.1, 0.4])
    0.5
    """
    threshold = check("threshold", threshold, Number)
    scores = as_array(scores, "scores", ("n_genes",), undefined=True)
    defined = scores[~np.isnan(scores)]
    return float((defined > threshold).mean()) if len(defined) else float("nan")


def _pearson(pred: NDArray[np.float64], true: NDArray[np.float64], *, axis: int) -> NDArray[np.float64]:
    a, b = standardize(pred, axis=axis), standardize(true, axis=axis)
    r: NDArray[np.float64] = np.sum(a * b, axis=axis).clip(-1, 1)
    # Rounding may make the mean of a constant differ from it, so test the values.
    constant = (np.ptp(pred, axis=axis) == 0) | (np.ptp(true, axis=axis) == 0)
    r[constant] = np.nan
    return r


def standardize(x: NDArray[np.float64], *, axis: int) -> NDArray[np.float64]:
    """Centre to mean 0 and scale to sum of squares 1; the result for a constant is finite but meaningless."""
    # Subtract one of the values first: nearly exact where values are alike, unlike subtracting their mean.
    x = x - np.take(x, [0], axis=axis)
    x -= x.mean(axis=axis, keepdims=True)
    # Without this step squares could overflow or vanish.
    largest = np.maximum(x.max(axis=axis, keepdims=True), -x.min(axis=axis, keepdims=True))
    x /= np.where(largest > 0, largest, 1)
    norm = np.sqrt(np.sum(x * x, axis=axis, keepdims=True))
    x /= np.where(norm > 0, norm, 1)
    return x


def unit_variance(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standardise columns; rounding error of a constant column is not spread."""
    spread = np.ptp(x, axis=0) > 1e-12 * np.abs(x).max(axis=0)
    return np.where(spread, standardize(x, axis=0) * np.sqrt(len(x)), 0.0)


def _basis(covariates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Orthonormal basis of the centred covariates, ``(n_spots, rank)``."""
    columns = unit_variance(covariates)
    vectors, sizes, _ = np.linalg.svd(columns, full_matrices=False)
    return vectors[:, sizes > 1e-10 * max(sizes[0], 1)]


def _residuals(values: NDArray[np.float64], basis: NDArray[np.float64]) -> NDArray[np.float64]:
    """Residuals of each column; 0 where only rounding error is left."""
    constant = np.ptp(values, axis=0) == 0
    left = standardize(values, axis=0)
    left -= basis @ (basis.T @ left)
    explained = np.sqrt(np.sum(left * left, axis=0)) < SMALLEST
    left[:, constant | explained] = 0
    return left
