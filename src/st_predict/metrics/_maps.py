"""Similarity of maps on the lattice of spots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.ndimage import uniform_filter

from st_predict._errors import InvalidValueError
from st_predict._validated import Count, Share, check
from st_predict.metrics._arrays import as_pair, as_whole, check_length

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["ssim"]

C1, C2 = 0.01**2, 0.03**2
"""Constants of the publication, for maps with a range of 1."""


def ssim(
    pred: ArrayLike,
    true: ArrayLike,
    grid: ArrayLike,
    *,
    window: int = 7,
    min_share: float = 0.5,
    scale: Literal["observed", "own"] = "observed",
) -> NDArray[np.float64]:
    """Structural similarity :cite:p:`Wang2004` of the predicted and the observed map, per gene.

    The mean over square windows of ``(2 mp mt + C1) (2 c + C2) / ((mp**2 + mt**2 + C1) (vp + vt + C2))``, with means
    ``m``, sample variances ``v`` and covariance ``c`` of the spots in the window. Lattice places without a spot are left
    out.

    Parameters
    ----------
    pred, true
        Prediction and observation, ``(n_spots, n_genes)``.
    grid
        Row and column of each spot on the lattice, ``(n_spots, 2)``, whole numbers. Pairs of columns are joined if row +
        column has the same parity for all spots, as on the hexagonal lattice of Visium.
    window
        Side of a window, in spots; odd and at least 3.
    min_share
        Smallest share of a window's places with a spot. Windows are centred on spots; emptier windows are not used. 1 uses
        only complete windows, as ``skimage.metrics.structural_similarity`` does.
    scale
        Scaling of the maps. ``"observed"``: both maps minus the smallest observed value, divided by the observed range.
        ``"own"``: each map scaled to its own range, for predictions in other units.

    Returns
    -------
    ndarray
        ``(n_genes,)``, from -1 to 1; 1 for equal maps. NaN where a map that sets the scale is constant, and everywhere
        if no window has enough spots.

    Raises
    ------
    TypeError
        If an array is sparse.
    ValueError
        If the arrays are not numbers, do not fit each other, are empty, or hold NaN or infinite values, if two spots have
        the same place, or if ``window``, ``min_share`` or ``scale`` is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from st_predict.metrics import ssim
    >>> grid = np.argwhere(np.ones((8, 8)))
    >>> true = grid[:, :1] % 4
    >>> ssim(true, true, grid), ssim(3 - true, true, grid).round(2)
    (array([1.]), array([-0.93]))
    """
    pred, true = as_pair(pred, true)
    side = check("window", window, Count)
    share = check("min_share", min_share, Share)
    if side < 3 or side % 2 == 0:
        raise InvalidValueError(f"window must be odd and at least 3, got {side}.")
    if scale not in {"observed", "own"}:
        raise InvalidValueError(f"scale must be 'observed' or 'own', got {scale!r}.")
    places = _places(grid, len(pred))
    n = _window_sums(np.ones(len(pred)), places, side).round()
    used = n >= max(share * side**2, 2)
    scores = np.full(pred.shape[1], np.nan)
    if not used.any():
        return scores
    for gene, (p, t) in enumerate(zip(pred.T, true.T, strict=True)):
        unit = (p, t) if scale == "own" else (t, t)
        if min(np.ptp(values) for values in unit) > 0:
            a, b = ((values - u.min()) / np.ptp(u) for values, u in zip((p, t), unit, strict=True))
            scores[gene] = _similarity(a, b, n, places=places, side=side)[used].mean()
    return scores


def _similarity(
    a: NDArray[np.float64], b: NDArray[np.float64], n: NDArray[np.float64], *, places: NDArray[np.int64], side: int
) -> NDArray[np.float64]:
    """Similarity in the window around each spot, ``(n_spots,)``."""
    mean_a, mean_b, aa, bb, ab = (_window_sums(values, places, side) / n for values in (a, b, a * a, b * b, a * b))
    sample = n / np.maximum(n - 1, 1)
    variances = sample * (aa - mean_a**2 + bb - mean_b**2)
    covariance = sample * (ab - mean_a * mean_b)
    means = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    result: NDArray[np.float64] = means * (2 * covariance + C2) / (variances + C2)
    return result


def _window_sums(values: NDArray[np.float64], places: NDArray[np.int64], side: int) -> NDArray[np.float64]:
    """Sum over the spots in the window around each spot, ``(n_spots,)``."""
    lattice = np.zeros(places.max(axis=0) + 1)
    lattice[tuple(places.T)] = values
    sums: NDArray[np.float64] = uniform_filter(lattice, side, mode="constant") * side**2
    return sums[tuple(places.T)]


def _places(grid: ArrayLike, n_spots: int) -> NDArray[np.int64]:
    """Row and column from 0, without the gaps of a hexagonal lattice."""
    places = as_whole(grid, "grid", ("n_spots", "2"))
    check_length(places, "grid", n_spots)
    if places.shape[1] != 2:
        raise InvalidValueError(f"grid must be (n_spots, 2), row and column, got the shape {places.shape}.")
    if len(np.unique(places.sum(axis=1) % 2)) == 1:
        places[:, 1] //= 2
    places -= places.min(axis=0)
    n_places = len(np.unique(places, axis=0))
    if n_places < n_spots:
        raise InvalidValueError(
            f"grid must have a different place per spot, got {n_places} places for {n_spots} spots."
        )
    return places
