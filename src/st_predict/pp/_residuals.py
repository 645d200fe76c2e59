"""Analytic Pearson residuals of counts :cite:p:`Lause2021`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["THETA", "pearson_residuals"]

THETA = 100.0
"""Overdispersion of the negative binomial, as recommended by the publication."""

IN_CACHE = 2**16
"""Number of values computed at a time; arrays that a cache of the processor holds are several times as fast."""


def pearson_residuals(
    counts: NDArray[np.float64],
    totals: NDArray[np.float64],
    proportions: NDArray[np.float64],
    *,
    theta: float = THETA,
    clip: float | None = None,
) -> NDArray[np.float64]:
    """Return ``(c - mu) / sqrt(mu + mu**2 / theta)`` with ``mu = total * proportion``.

    Parameters
    ----------
    counts
        ``(n_spots, n_genes)`` raw counts.
    totals
        ``(n_spots,)`` sums of counts over all genes of the table.
    proportions
        ``(n_genes,)`` shares of each gene in all counts.
    theta
        Overdispersion of the negative binomial.
    clip
        Largest absolute value; ``None`` does not clip.

    Returns
    -------
    ``(n_spots, n_genes)``; 0 where nothing is expected.
    """
    residuals = np.empty(counts.shape)
    rows = max(1, IN_CACHE // max(1, counts.shape[1]))
    for start in range(0, len(counts), rows):
        some = slice(start, start + rows)
        mean = totals[some, None] * proportions
        spread = np.sqrt(mean + mean**2 / theta)
        residuals[some] = np.divide(counts[some] - mean, spread, out=np.zeros_like(mean), where=spread > 0)
    return residuals if clip is None else residuals.clip(-clip, clip, out=residuals)
