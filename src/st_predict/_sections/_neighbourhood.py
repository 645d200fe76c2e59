"""Standardised features, and features of neighbouring spots."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial import cKDTree

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["join_neighbours", "standardize"]

_TIE = 1.001  # tolerance for rounding, as distances on a lattice are equal


def standardize(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Standardise each feature over the spots of a slide (mean 0, standard deviation 1); constant features become 0.

    Parameters
    ----------
    features
        ``(n_spots, n_features)``: features; spots with NaN are left out of the statistics.

    Returns
    -------
    ndarray
        ``(n_spots, n_features)``.
    """
    known = features[np.isfinite(features).all(axis=1)].astype(np.float64)
    if not len(known):
        return features
    mean, std = known.mean(axis=0), known.std(axis=0)
    constant = std <= 1e-6 * np.maximum(np.abs(mean), 1e-12)
    return np.where(constant & np.isfinite(features), 0, (features - mean) / np.where(constant, 1, std)).astype(
        np.float32
    )


def join_neighbours(features: NDArray[np.float32], xy: NDArray[np.float64], n: int) -> NDArray[np.float32]:
    """Append the mean features of the nearest spots to the features of each spot.

    Parameters
    ----------
    features
        ``(n_spots, n_features)``: features; spots with NaN do not count as neighbours.
    xy
        ``(n_spots, 2)``: centres.
    n
        Number of neighbours, or fewer if there are not enough spots. Ties with the last neighbour are included, so that
        the result does not depend on the order of spots. A spot without neighbours is its own neighbour.

    Returns
    -------
    ndarray
        ``(n_spots, 2 * n_features)``.
    """
    known = np.flatnonzero(np.isfinite(features).all(axis=1))
    beside = np.full_like(features, np.nan)
    if len(known) == 1:
        beside[known] = features[known]
    elif len(known):
        tree = cKDTree(xy[known])
        n = min(n, len(known) - 1)
        radius = tree.query(xy[known], k=[n + 1])[0][:, 0]  # the nearest is the spot itself
        near = tree.query_ball_point(xy[known], radius * _TIE)
        for i, found in zip(known, near, strict=True):
            others = [j for j in known[found] if j != i]
            beside[i] = features[others].mean(axis=0, dtype=np.float64)
    return np.concatenate([features, beside], axis=1)
