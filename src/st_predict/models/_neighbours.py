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
        Rows of the neighbours, ``(n_spots, k)`` int64, nearest first. Ties are ordered by x, then y, so the order of
        the spots does not matter. And a mask, ``(n_spots, k)`` bool: False where a section has too few spots; the row
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
    while asked < n and not (distance[:, -1] > distance[:, k]).all():  # further spots may tie with the last
        asked = min(n, 2 * asked)
        distance, rows = tree.query(xy, k=[*range(1, asked + 1)])
    distance[rows == np.arange(n)[:, None]] = -1
    order = np.lexsort((xy[rows, 1], xy[rows, 0], distance))[:, 1 : k + 1]
    return np.take_along_axis(rows, order, axis=1)
