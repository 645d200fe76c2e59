"""Centroids of labels, block by block."""

from __future__ import annotations

from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import pandas as pd
from xarray import DataArray, DataTree

from st_predict.io._edges import edges_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["label_centres"]

PIXELS = 4_000_000
"""Pixels whose labels are counted at once."""

SPARSE = 4
"""Labels of a block that span more than so many numbers per pixel are renumbered first."""


def label_centres(labels: DataArray | DataTree) -> tuple[pd.Index[int], NDArray[np.float64]]:
    """Centroid of each label, over all of its pixels on the finest level.

    Parameters
    ----------
    labels
        Labels element, ``(y, x)``; 0 is background. Each block is read once.

    Returns
    -------
    tuple of Index and ndarray
        The labels, rising, and ``(n_labels, 2)`` centroids x and y in pixels, where pixel ``j`` covers ``[j, j + 1)``.
    """
    array = da.asarray(_finest(labels).transpose("y", "x").data)  # type: ignore[no-untyped-call]
    parts = [_sums(block, top=top, left=left) for block, top, left in _blocks(array)]
    if not parts:
        return pd.Index([], dtype=np.int64), np.empty((0, 2))
    found = np.concatenate(parts)
    names, place = np.unique(found[:, 0].astype(np.int64), return_inverse=True)
    n, x, y = (np.bincount(place, weights=found[:, column]) for column in (1, 2, 3))
    return pd.Index(names), np.column_stack([x / n, y / n]) + 0.5


def _finest(labels: Any) -> DataArray:
    if isinstance(labels, DataArray):
        return labels
    levels = [level for scale in labels.children.values() for level in list(scale.data_vars.values())[:1]]
    finest: DataArray = max(levels, key=lambda level: level.sizes["x"] * level.sizes["y"])
    return finest


def _blocks(array: da.Array) -> Iterator[tuple[NDArray[np.integer[Any]], int, int]]:
    """Parts of the blocks that the array is stored in, with their top and left edge."""
    edges = [list(pairwise(edge)) for edge in edges_of(array.chunks)]
    for (top, bottom), (left, right) in product(*edges):
        block = np.asarray(array[top:bottom, left:right].compute(scheduler="synchronous"))
        rows = max(1, PIXELS // block.shape[1])
        for start in range(0, len(block), rows):
            yield block[start : start + rows], int(top) + start, int(left)


def _sums(block: NDArray[np.integer[Any]], *, top: int, left: int) -> NDArray[np.float64]:
    """``(n_labels, 4)``: label, number of pixels, and sums of x and y of a part of the labels."""
    flat = block.ravel()
    inside = np.flatnonzero(flat)
    if not len(inside):
        return np.empty((0, 4))
    values = flat[inside].astype(np.int64)
    lowest = int(values.min())
    if int(values.max()) - lowest > SPARSE * block.size:
        names, place = np.unique(values, return_inverse=True)
    else:
        names, place = np.arange(lowest, int(values.max()) + 1), values - lowest
    y, x = np.divmod(inside, block.shape[1])
    n, sum_x, sum_y = (np.bincount(place, weights=w, minlength=len(names)) for w in (None, x + left, y + top))
    there = n > 0
    return np.column_stack([names, n, sum_x, sum_y])[there]
