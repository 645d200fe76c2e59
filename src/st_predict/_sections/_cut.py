"""Spots whose field of view leaves the image where tissue goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from st_predict.pp import Tissue

__all__ = ["fields_cut"]

BAND = 2
"""Pixels of the mask along an edge in which tissue is taken to touch it."""


def fields_cut(xy: NDArray[np.float64], field: float, tissue: Tissue, *, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Which fields of view leave the image at a part of its edge that tissue touches.

    Parameters
    ----------
    xy
        ``(n_spots, 2)``: centres in level-0 pixels.
    field
        Side of the fields of view, in level-0 pixels.
    tissue
        Tissue of the image.
    shape
        ``(height, width)`` of level 0.

    Returns
    -------
    ``(n_spots,)``. What lies outside such a field may be tissue that the image does not show.
    """
    mask, (height, width) = tissue.mask, shape
    low, high = xy - field / 2, xy + field / 2
    cut = np.zeros(len(xy), dtype=bool)
    for axis, side in ((0, width), (1, height)):
        along = 1 - axis
        rows = mask if axis == 0 else mask.T
        for leaves, edge in ((low[:, axis] < 0, rows[:, :BAND]), (high[:, axis] > side, rows[:, -BAND:])):
            touched = np.concatenate([[0], np.cumsum(edge.any(axis=1))])
            first, last = (
                np.clip(fn(ends[:, along] / tissue.downsample), 0, len(touched) - 1).astype(int)
                for fn, ends in ((np.floor, low), (np.ceil, high))
            )
            cut |= leaves & (touched[last] > touched[first])
    return cut
