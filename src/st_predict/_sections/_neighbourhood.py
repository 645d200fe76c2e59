"""Features of a spot relative to its slide, and beside those of the spots next to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial import cKDTree

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["join_neighbours", "standardize"]

_TIE = 1.001  # centres on a lattice are equally far up to rounding


def standardize(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give each feature mean 0 and standard deviation 1 over the spots of a slide; one that is constant becomes 0.

    Parameters
    ----------
    features
        ``(n_spots, n_features)``; spots with NaN are left out of the statistics.

    Returns
    -------
    As ``features``.
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
    """Join to the features of each spot the mean of those of the spots nearest to it.

    Parameters
    ----------
    features
        ``(n_spots, n_features)``; spots with NaN are nobody's neighbours.
    xy
        ``(n_spots, 2)``: centres.
    n
        Number of neighbours; all others, where there are fewer. Spots that are as far as the last of them count too, so that the
        result does not depend on the order of the spots. A spot without neighbours stands in for them itself.

    Returns
    -------
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
