"""Scores of a prediction, a gene or a spot at a time: arrays in, arrays out."""

from __future__ import annotations

from numbers import Integral
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.sparse import issparse
from scipy.stats import rankdata

from st_predict._errors import InvalidTypeError, InvalidValueError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike, NDArray

__all__ = ["DEFINITIONS", "mae", "pearson", "rmse", "spearman"]

DEFINITIONS: Mapping[str, str] = {
    "gene_pearson": "Pearson correlation of prediction and observation over the spots of one section, a gene at a time; "
    "sections are never pooled. A mean over genes leaves out undefined ones.",
    "gene_spearman": "Spearman correlation (Pearson correlation of ranks, ties share their mean rank) of prediction and "
    "observation over the spots of one section, a gene at a time; sections are never pooled. A mean over genes leaves "
    "out undefined ones.",
    "spot_pearson": "Pearson correlation of prediction and observation over the genes of the panel, a spot at a time, then "
    "the mean over the spots where it is defined (the PCC of M2OST).",
    "spot_rmse": "Root of the mean squared error over the genes of the panel, a spot at a time, then the mean over spots "
    "(the RMSE of M2OST).",
    "mae": "Mean absolute error over all spots and genes.",
    "n_undefined_genes": "Number of genes without a correlation over the spots of the section, because the prediction or the "
    "observation is constant there; they count as undefined, not as zero.",
    "n_undefined_spots": "Number of spots without a correlation over the genes, because the prediction or the observation is "
    "constant there; they count as undefined, not as zero.",
}
"""What every reported score means, in one sentence each; written beside the scores."""


def pearson(pred: ArrayLike, true: ArrayLike, *, axis: Literal[0, 1]) -> NDArray[np.float64]:
    """Pearson correlation, a gene or a spot at a time.

    ``sum(dp * dt) / sqrt(sum(dp**2) * sum(dt**2))`` with ``dp = pred - mean(pred)`` and ``dt = true - mean(true)``, all
    along ``axis``.

    Parameters
    ----------
    pred, true
        Prediction and observation, ``(n_spots, n_genes)``.
    axis
        Axis to run over: 0 runs over spots and gives a score a gene, 1 runs over genes and gives a score a spot.

    Returns
    -------
    ``(n_genes,)`` or ``(n_spots,)``, from -1 to 1; NaN where ``pred`` or ``true`` is constant.

    Raises
    ------
    TypeError
        If an array is sparse.
    ValueError
        If the arrays are no numbers, not two-dimensional, are empty, differ in shape, or hold NaN or infinite values.
    """
    pred, true = _check(pred, true, axis=axis)
    return _pearson(pred, true, axis=axis)


def spearman(pred: ArrayLike, true: ArrayLike, *, axis: Literal[0, 1]) -> NDArray[np.float64]:
    """Spearman correlation, a gene or a spot at a time.

    The Pearson correlation of the ranks along ``axis``; tied values share the mean of their ranks.

    Parameters
    ----------
    pred, true
        Prediction and observation, ``(n_spots, n_genes)``.
    axis
        Axis to run over: 0 runs over spots and gives a score a gene, 1 runs over genes and gives a score a spot.

    Returns
    -------
    ``(n_genes,)`` or ``(n_spots,)``, from -1 to 1; NaN where ``pred`` or ``true`` is constant.

    Raises
    ------
    TypeError
        If an array is sparse.
    ValueError
        If the arrays are no numbers, not two-dimensional, are empty, differ in shape, or hold NaN or infinite values.
    """
    pred, true = _check(pred, true, axis=axis)
    return _pearson(rankdata(pred, axis=axis), rankdata(true, axis=axis), axis=axis)


def rmse(pred: ArrayLike, true: ArrayLike, *, axis: Literal[0, 1]) -> NDArray[np.float64]:
    """Root of the mean squared error, ``sqrt(mean((pred - true)**2))`` along ``axis``.

    Parameters
    ----------
    pred, true
        Prediction and observation, ``(n_spots, n_genes)``.
    axis
        Axis to run over: 0 runs over spots and gives a score a gene, 1 runs over genes and gives a score a spot.

    Returns
    -------
    ``(n_genes,)`` or ``(n_spots,)``, in the units of the input.

    Raises
    ------
    TypeError
        If an array is sparse.
    ValueError
        If the arrays are no numbers, not two-dimensional, are empty, differ in shape, or hold NaN or infinite values.

    Notes
    -----
    The RMSE of M2OST is the mean over spots of ``rmse(pred, true, axis=1)``, not the root of the overall mean.
    """
    pred, true = _check(pred, true, axis=axis)
    return np.sqrt(np.mean(np.square(pred - true), axis=axis))


def mae(pred: ArrayLike, true: ArrayLike, *, axis: Literal[0, 1]) -> NDArray[np.float64]:
    """Mean absolute error, ``mean(|pred - true|)`` along ``axis``.

    Parameters
    ----------
    pred, true
        Prediction and observation, ``(n_spots, n_genes)``.
    axis
        Axis to run over: 0 runs over spots and gives a score a gene, 1 runs over genes and gives a score a spot.

    Returns
    -------
    ``(n_genes,)`` or ``(n_spots,)``, in the units of the input.

    Raises
    ------
    TypeError
        If an array is sparse.
    ValueError
        If the arrays are no numbers, not two-dimensional, are empty, differ in shape, or hold NaN or infinite values.
    """
    pred, true = _check(pred, true, axis=axis)
    return np.mean(np.abs(pred - true), axis=axis)


def _check(pred: ArrayLike, true: ArrayLike, *, axis: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if isinstance(axis, bool) or not isinstance(axis, Integral) or axis not in {0, 1}:
        raise InvalidValueError(
            f"axis must be 0 (over spots, a score a gene) or 1 (over genes, a score a spot), got {axis!r}."
        )
    arrays = _as_float64(pred, "pred"), _as_float64(true, "true")
    if arrays[0].shape != arrays[1].shape:
        raise InvalidValueError(f"pred and true must have the same shape, got {arrays[0].shape} and {arrays[1].shape}.")
    return arrays


def _as_float64(values: ArrayLike, name: str) -> NDArray[np.float64]:
    if issparse(values):
        raise InvalidTypeError(
            f"{name} is sparse ({type(values).__name__}), and must be dense.", f"make it dense by {name}.toarray()"
        )
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidValueError(f"{name} must be numbers, (n_spots, n_genes) ({error}).") from error
    if array.ndim != 2 or array.size == 0:
        raise InvalidValueError(f"{name} must be (n_spots, n_genes) and not empty, got the shape {array.shape}.")
    n_bad = int((~np.isfinite(array)).sum())
    if n_bad:
        raise InvalidValueError(
            f"{name} has {n_bad} NaN or infinite values of {array.size}.", "leave these spots or genes out"
        )
    return array


def _pearson(pred: NDArray[np.float64], true: NDArray[np.float64], *, axis: int) -> NDArray[np.float64]:
    a, b = _standardize(pred, axis=axis), _standardize(true, axis=axis)
    r: NDArray[np.float64] = np.sum(a * b, axis=axis).clip(-1, 1)
    # The rounded mean of a constant need not be that constant, so the test is on the values themselves.
    constant = (np.ptp(pred, axis=axis) == 0) | (np.ptp(true, axis=axis) == 0)
    r[constant] = np.nan
    return r


def _standardize(x: NDArray[np.float64], *, axis: int) -> NDArray[np.float64]:
    """Centre to mean 0 and scale to sum of squares 1; a constant gives something finite and meaningless."""
    # Differences to one of the values are exact or nearly so where values are alike, which their mean is not.
    x = x - np.take(x, [0], axis=axis)
    x = x - x.mean(axis=axis, keepdims=True)
    # Without this step squares could overflow or vanish.
    largest = np.abs(x).max(axis=axis, keepdims=True)
    x = np.divide(x, largest, out=np.zeros_like(x), where=largest > 0)
    norm = np.sqrt(np.sum(x * x, axis=axis, keepdims=True))
    return np.divide(x, norm, out=np.zeros_like(x), where=norm > 0)
