"""Training targets smoothed over neighbouring spots."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import coo_array
from scipy.spatial import cKDTree

if TYPE_CHECKING:
    from st_predict._sections._observed import Observed

__all__ = ["smoothed"]

_REACH = 1.57  # spot distances: beyond the diagonal of a square lattice (1.41), short of a second neighbour on a hexagonal one (1.73)


def smoothed(observed: Observed) -> Observed:
    """Replace the target of each measured spot by the mean over it and its measured neighbours, of its own section only.

    Neighbours are the spots at most 1.57 spot distances away: up to 8 on a square lattice, 6 on a hexagonal one. The spot
    distance is the median over the 4 nearest spots of each spot. Where spots lie more than 4 % of it beside their places, some
    diagonal neighbours are missed.
    """
    xy = observed.section.spots.xy[observed.rows]
    n = len(xy)
    if n < 2:
        return observed
    tree = cKDTree(xy)
    near = tree.query(xy, k=min(5, n))[0][
        :, 1:
    ]  # of four neighbours: the nearest one is too near where spots are jittered
    pairs = tree.query_pairs(_REACH * float(np.median(near)), output_type="ndarray")
    one, other = np.concatenate([pairs, pairs[:, ::-1], np.repeat(np.arange(n), 2).reshape(-1, 2)]).T
    joined = coo_array((np.ones(len(one)), (one, other)), shape=(n, n)).tocsr()
    target = (joined @ observed.target.astype(np.float64)) / joined.sum(axis=1)[:, None]
    return replace(observed, target=target.astype(np.float32))
