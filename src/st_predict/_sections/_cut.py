"""Spots whose field of view is cut by the image border within tissue."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from st_predict.pp import Tissue

__all__ = ["fields_cut"]

BAND = 2
"""Width of the border, in pixels of the mask, in which tissue counts as touching the edge."""


def fields_cut(xy: NDArray[np.float64], field: float, tissue: Tissue, *, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the fields of view that leave the image at a part of its edge touched by tissue.

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
    ndarray
        ``(n_spots,)``, true where the missing part may be tissue.
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
