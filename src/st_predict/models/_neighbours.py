"""Nearest spots of each spot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.spatial import cKDTree

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["nearest_spots"]

_TIE = (
    1e-4  # largest difference of equal distances, relative to the distance of spots: float32 has 1e-5 on a large slide
)


def nearest_spots(xy_N2: Tensor, k: int, section_N: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Find the spots nearest to each spot, itself left out. A tree keeps memory at ``n_spots * k``.

    Parameters
    ----------
    xy_N2
        Positions, ``(n_spots, 2)``, in any unit.
    k
        Number of neighbours.
    section_N
        Section of each spot, ``(n_spots,)``. Spots of different sections are never neighbours. ``None`` for one section.

    Returns
    -------
    tuple of Tensor and Tensor
        Rows of the neighbours, ``(n_spots, k)`` int64, nearest first. Ties, up to rounding, are ordered by x, then y, so
        neither the order of the spots nor the origin of the positions matters. And a mask, ``(n_spots, k)`` bool: False where a section has too few spots; the row
        is then the spot itself.
    """
    device, n = xy_N2.device, len(xy_N2)
    if device.type == "meta":
        return torch.zeros(n, k, dtype=torch.int64, device=device), torch.ones(n, k, dtype=torch.bool, device=device)
    xy = xy_N2.detach().double().cpu().numpy()
    sections = np.zeros(n, dtype=np.int64) if section_N is None else section_N.cpu().numpy()
    rows = np.repeat(np.arange(n)[:, None], k, axis=1)
    there = np.zeros((n, k), dtype=bool)
    for section in np.unique(sections):
        members = np.flatnonzero(sections == section)
        found = _nearest_of(xy[members], min(k, len(members) - 1))
        rows[members, : found.shape[1]] = members[found]
        there[members, : found.shape[1]] = True
    return torch.from_numpy(rows).to(device), torch.from_numpy(there).to(device)


def _nearest_of(xy: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    """Rows of the nearest spots, ``(n, k)``, without the spot itself."""
    n, tree = len(xy), cKDTree(xy)
    asked = min(n, k + 9)
    distance, rows = tree.query(xy, k=[*range(1, asked + 1)])
    tie = _TIE * _pitch(distance)
    while asked < n and not (distance[:, -1] > distance[:, k] + tie).all():  # further spots may tie with the last
        asked = min(n, 2 * asked)
        distance, rows = tree.query(xy, k=[*range(1, asked + 1)])
    # a gap begins a new rank: rounded distances would part ties that lie at the edge of a step
    rank = np.cumsum(np.diff(distance, axis=1, prepend=0.0) > tie, axis=1)
    rank[rows == np.arange(n)[:, None]] = -1
    x, y = np.rint((xy[rows] - xy[:, None]) / tie).transpose(2, 0, 1)
    order = np.lexsort((y, x, rank))[:, 1 : k + 1]
    return np.take_along_axis(rows, order, axis=1)


def _pitch(distance: NDArray[np.float64]) -> float:
    """Usual distance to the nearest other spot; 1 if spots share their places."""
    return float(np.median(distance[:, 1])) or 1.0 if distance.shape[1] > 1 else 1.0
