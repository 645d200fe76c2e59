"""Checks of the arrays that scores take."""

from __future__ import annotations

from numbers import Integral
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import issparse

from st_predict._errors import InvalidTypeError, InvalidValueError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["as_array", "as_pair", "as_pvalues", "as_whole", "check_axis", "check_length"]

MATRIX = ("n_spots", "n_genes")


def as_pair(
    pred: ArrayLike, true: ArrayLike, shape: tuple[str, ...] = MATRIX
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return prediction and observation as float64 arrays of one shape."""
    arrays = as_array(pred, "pred", shape), as_array(true, "true", shape)
    if arrays[0].shape != arrays[1].shape:
        raise InvalidValueError(f"pred and true must have the same shape, got {arrays[0].shape} and {arrays[1].shape}.")
    return arrays


def as_array(
    values: ArrayLike, name: str, shape: tuple[str, ...] = MATRIX, *, undefined: bool = False
) -> NDArray[np.float64]:
    """Return a dense, non-empty float64 array; ``undefined`` accepts NaN."""
    expected = f"({shape[0]},)" if len(shape) == 1 else f"({', '.join(shape)})"
    if issparse(values):
        raise InvalidTypeError(
            f"{name} is sparse ({type(values).__name__}), and must be dense.", f"make it dense with {name}.toarray()"
        )
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidValueError(f"{name} must be numbers, {expected} ({error}).") from error
    if array.ndim != len(shape) or array.size == 0:
        raise InvalidValueError(f"{name} must be {expected} and not empty, got the shape {array.shape}.")
    n_bad = int((np.isinf(array) if undefined else ~np.isfinite(array)).sum())
    if n_bad:
        what = "infinite" if undefined else "NaN or infinite"
        raise InvalidValueError(f"{name} has {n_bad} {what} values of {array.size}.", "leave these spots or genes out")
    return array


def as_whole(values: ArrayLike, name: str, shape: tuple[str, ...]) -> NDArray[np.int64]:
    """Return an array of whole numbers."""
    array = as_array(values, name, shape)
    n_bad = int((array != np.round(array)).sum())
    if n_bad:
        raise InvalidValueError(f"{name} must be whole numbers, but {n_bad} of {array.size} values are not.")
    return array.astype(np.int64)


def as_pvalues(p: ArrayLike) -> NDArray[np.float64]:
    """Return p-values, ``(n_tests,)``; NaN is undefined."""
    array = as_array(p, "p", ("n_tests",), undefined=True)
    defined = array[~np.isnan(array)]
    if ((defined < 0) | (defined > 1)).any():
        raise InvalidValueError(f"p must be between 0 and 1, got values from {defined.min():g} to {defined.max():g}.")
    return array


def check_axis(axis: int) -> None:
    """Refuse an axis other than 0 and 1."""
    if isinstance(axis, bool) or not isinstance(axis, Integral) or axis not in {0, 1}:
        raise InvalidValueError(
            f"axis must be 0 (over spots, one score per gene) or 1 (over genes, one score per spot), got {axis!r}."
        )


def check_length(values: NDArray[np.generic], name: str, n_spots: int) -> None:
    """Refuse an array without one row per spot."""
    if len(values) != n_spots:
        raise InvalidValueError(f"{name} must have one row per spot, got {len(values)} rows for {n_spots} spots.")
