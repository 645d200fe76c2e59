"""Analytic Pearson residuals of counts :cite:p:`Lause2021`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["THETA", "pearson_residuals"]

THETA = 100.0
"""Inverse overdispersion of the negative binomial recommended by :cite:t:`Lause2021`."""

IN_CACHE = 2**16
"""Number of values per step; arrays that fit into the processor's cache are several times as fast."""


def pearson_residuals(
    counts: NDArray[np.float64],
    totals: NDArray[np.float64],
    proportions: NDArray[np.float64],
    *,
    theta: float = THETA,
    clip: float | None = None,
) -> NDArray[np.float64]:
    """Compute analytic Pearson residuals :cite:p:`Lause2021`.

    They are ``(count - mu) / sqrt(mu + mu**2 / theta)`` with ``mu = total * proportion``.

    Parameters
    ----------
    counts
        ``(n_spots, n_genes)``: raw counts.
    totals
        ``(n_spots,)``: total counts over all genes of the table.
    proportions
        ``(n_genes,)``: share of each gene in all counts.
    theta
        Inverse overdispersion of the negative binomial; the variance is ``mu + mu**2 / theta``.
    clip
        Maximum absolute value; ``None`` does not clip.

    Returns
    -------
    ndarray
        ``(n_spots, n_genes)``; 0 where ``mu`` is 0.

    Examples
    --------
    >>> import numpy as np
    >>> import st_predict as stp
    >>> counts = np.array([[5, 0], [5, 10]])
    >>> stp.pp.pearson_residuals(counts, np.array([100, 100]), np.array([0.05, 0.05])).round(1)
    array([[ 0. , -2.2],
           [ 0. ,  2.2]])
    """
    residuals = np.empty(counts.shape)
    rows = max(1, IN_CACHE // max(1, counts.shape[1]))
    for start in range(0, len(counts), rows):
        some = slice(start, start + rows)
        mean = totals[some, None] * proportions
        spread = np.sqrt(mean + mean**2 / theta)
        residuals[some] = np.divide(counts[some] - mean, spread, out=np.zeros_like(mean), where=spread > 0)
    return residuals if clip is None else residuals.clip(-clip, clip, out=residuals)
