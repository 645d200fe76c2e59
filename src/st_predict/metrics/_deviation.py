"""Errors in the units of the values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from st_predict.metrics._arrays import as_pair, check_axis

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["mae", "rmse"]


def rmse(pred: ArrayLike, true: ArrayLike, *, axis: Literal[0, 1]) -> NDArray[np.float64]:
    """Root of the mean squared error, ``sqrt(mean((pred - true)**2))`` along ``axis``.

    Parameters
    ----------
    pred, true
        Prediction and observation, ``(n_spots, n_genes)``.
    axis
        Axis to run over. 0: over spots, one score per gene. 1: over genes, one score per spot.

    Returns
    -------
    ndarray
        ``(n_genes,)`` or ``(n_spots,)``, in the units of the input.

    Raises
    ------
    TypeError
        If an array is sparse.
    ValueError
        If the arrays are not numbers, not two-dimensional, are empty, differ in shape, or hold NaN or infinite values.

    Notes
    -----
    The RMSE of M2OST is the mean over spots of ``rmse(pred, true, axis=1)``, not the root of the overall mean.

    Examples
    --------
    >>> from st_predict.metrics import rmse
    >>> rmse([[1, 2], [3, 4]], [[1, 4], [3, 0]], axis=0).round(2)  # one error per gene
    array([0.  , 3.16])
    """
    check_axis(axis)
    pred, true = as_pair(pred, true)
    return np.sqrt(np.mean(np.square(pred - true), axis=axis))


def mae(pred: ArrayLike, true: ArrayLike, *, axis: Literal[0, 1]) -> NDArray[np.float64]:
    """Mean absolute error, ``mean(|pred - true|)`` along ``axis``.

    Parameters
    ----------
    pred, true
        Prediction and observation, ``(n_spots, n_genes)``.
    axis
        Axis to run over. 0: over spots, one score per gene. 1: over genes, one score per spot.

    Returns
    -------
    ndarray
        ``(n_genes,)`` or ``(n_spots,)``, in the units of the input.

    Raises
    ------
    TypeError
        If an array is sparse.
    ValueError
        If the arrays are not numbers, not two-dimensional, are empty, differ in shape, or hold NaN or infinite values.

    Examples
    --------
    >>> from st_predict.metrics import mae
    >>> mae([[1, 2], [3, 4]], [[1, 4], [3, 0]], axis=1)  # one error per spot
    array([1., 2.])
    """
    check_axis(axis)
    pred, true = as_pair(pred, true)
    return np.mean(np.abs(pred - true), axis=axis)
