"""Noise ceilings: the highest correlation that counting noise allows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from st_predict._errors import InvalidValueError
from st_predict._validated import Count, Natural, check
from st_predict.metrics._arrays import as_array, as_whole, check_length
from st_predict.metrics._correlation import partial_pearson, pearson

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray

    Transform = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]

__all__ = ["noise_ceiling", "noise_ceilings"]


def noise_ceiling(
    counts: ArrayLike,
    totals: ArrayLike,
    transform: Transform,
    *,
    seed: int,
    covariates: ArrayLike | None = None,
    n_splits: int = 10,
) -> NDArray[np.float64]:
    """Noise ceiling per gene: correlation of perfectly predicted expression rates with observed values.

    Counts are split at random into two halves, which are independent if counts are Poisson given the rates
    :cite:p:`Neufeld2024`. Both halves are transformed and correlated over the spots. ``2 r / (1 + r)``, with ``r`` the
    mean over splits, is the reliability of the full counts :cite:p:`Spearman1910,Brown1910`: the share of the observed
    variance that is not noise. The ceiling is its square root. The reliability itself is the correlation of two noisy
    measurements; a predictor of rates has no noise of its own, so its ceiling is higher.

    Parameters
    ----------
    counts
        Raw counts of the panel, ``(n_spots, n_genes)``.
    totals
        Total count of each spot over all genes of the table, ``(n_spots,)``. Counts outside the panel are split as well.
    transform
        Function from counts ``(n_spots, n_genes)`` and totals ``(n_spots,)`` to the scored values
        ``(n_spots, n_genes)``. It receives halves of counts and totals, some of which may be 0.
    seed
        Random seed of the splits.
    covariates
        Covariates of the partial correlation, ``(n_spots, k)``, for the ceiling of :func:`partial_pearson`;
        see :func:`depth_covariates`.
    n_splits
        Number of random splits to average.

    Returns
    -------
    ndarray
        ``(n_genes,)``, from 0 to 1. 0 where halves are not positively correlated: omitting such genes would raise a
        mean over genes. NaN where the correlation is undefined in all splits, for example for a gene without counts.

    Raises
    ------
    TypeError
        If an array is sparse.
    ValueError
        If counts or totals are not whole numbers of at least 0, if a total is below the sum of the counts of its spot, if
        shapes do not fit, or if ``transform`` gives another shape, NaN or infinite values.

    Notes
    -----
    The ceiling is accurate for analytic Pearson residuals: on simulated counts with known rates, the error of its mean over
    genes is 0.01 (2,000 spots) to 0.03 (180 spots). For ``log1p`` of counts per million it is 0.05 to 0.1 too high: that
    transform is mostly an indicator of zeros, which halving the depth changes. Pearson residuals with gene proportions of
    other sections depend on depth, and so does their plain ceiling. Compare partial correlations with the partial ceiling.

    Examples
    --------
    >>> import numpy as np
    >>> from st_predict.metrics import noise_ceiling
    >>> rates = np.linspace(1, 20, 400)[:, None] * [0.05, 1]  # a rare and a common gene
    >>> counts = np.random.default_rng(0).poisson(rates)
    >>> noise_ceiling(counts, counts.sum(axis=1), lambda counts, totals: counts, seed=0).round(1)
    array([0.2, 0.9])
    """
    (ceiling,) = noise_ceilings(counts, totals, [(transform, covariates)], seed=seed, n_splits=n_splits)
    return ceiling


def noise_ceilings(
    counts: ArrayLike,
    totals: ArrayLike,
    scores: Sequence[tuple[Transform, ArrayLike | None]],
    *,
    seed: int,
    n_splits: int = 10,
) -> list[NDArray[np.float64]]:
    """Noise ceilings of several scores, from the same splits of the counts.

    Results equal :func:`noise_ceiling` with the same ``seed``, in less time than one call per score.

    Parameters
    ----------
    counts
        Raw counts of the panel, ``(n_spots, n_genes)``.
    totals
        Total count of each spot over all genes of the table, ``(n_spots,)``.
    scores
        ``transform`` and ``covariates`` of each score, as for :func:`noise_ceiling`; covariates ``None`` give a plain
        correlation. A repeated function is called once per half.
    seed
        Random seed of the splits.
    n_splits
        Number of random splits to average.

    Returns
    -------
    list of ndarray
        List with one array ``(n_genes,)`` per score.

    Raises
    ------
    TypeError
        If an array is sparse.
    ValueError
        If :func:`noise_ceiling` refuses the arrays of a score.

    Examples
    --------
    >>> import numpy as np
    >>> from st_predict.metrics import depth_covariates, noise_ceilings
    >>> rates = np.linspace(1, 20, 400)[:, None] * [1, 1]  # spots differ only in depth
    >>> counts = np.random.default_rng(0).poisson(rates)
    >>> totals = counts.sum(axis=1)
    >>> def raw(counts, totals):
    ...     return counts
    >>> plain, partial = noise_ceilings(counts, totals, [(raw, None), (raw, depth_covariates(totals))], seed=0)
    >>> plain.round(1), partial.round(1)
    (array([0.9, 0.9]), array([0., 0.]))
    """
    counts, totals = _check(counts, totals)
    splits = check("n_splits", n_splits, Count)
    generator = np.random.default_rng(check("seed", seed, Natural))
    correlations = np.empty((len(scores), splits, counts.shape[1]))
    for split in range(splits):
        halves = list(_halves(counts, totals, generator))
        pairs: dict[Transform, list[NDArray[np.float64]]] = {}
        for row, (transform, covariates) in zip(correlations, scores, strict=True):
            if transform not in pairs:
                pairs[transform] = [_transformed(transform, *half) for half in halves]
            a, b = pairs[transform]
            row[split] = pearson(a, b, axis=0) if covariates is None else partial_pearson(a, b, covariates)
    return [_reliable(row) for row in correlations]


def _reliable(correlations: NDArray[np.float64]) -> NDArray[np.float64]:
    """Square root of the reliability of full counts, from correlations of halves ``(n_splits, n_genes)``."""
    n_defined = (~np.isnan(correlations)).sum(axis=0)
    undefined = np.full(correlations.shape[1], np.nan)
    r = np.divide(np.nansum(correlations, axis=0), n_defined, out=undefined, where=n_defined > 0)
    r = np.maximum(r, 0)
    return np.sqrt(2 * r / (1 + r))


def _check(counts: ArrayLike, totals: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    counts, totals = as_whole(counts, "counts", ("n_spots", "n_genes")), as_whole(totals, "totals", ("n_spots",))
    check_length(totals, "totals", len(counts))
    if counts.min() < 0:
        raise InvalidValueError(f"counts must be at least 0, got {counts.min()}.")
    n_bad = int((totals < counts.sum(axis=1)).sum())
    if n_bad:
        raise InvalidValueError(
            f"totals are sums over all genes, but {n_bad} of {len(totals)} are below the sum of their spot's counts."
        )
    return counts, totals


def _halves(
    counts: NDArray[np.int64], totals: NDArray[np.int64], generator: np.random.Generator
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Split counts, and totals by the same split."""
    first = generator.binomial(counts, 0.5)
    first_totals = first.sum(axis=1) + generator.binomial(totals - counts.sum(axis=1), 0.5)
    yield first.astype(np.float64), first_totals.astype(np.float64)
    yield (counts - first).astype(np.float64), (totals - first_totals).astype(np.float64)


def _transformed(transform: Transform, counts: NDArray[np.float64], totals: NDArray[np.float64]) -> NDArray[np.float64]:
    values = as_array(transform(counts, totals), "Result of transform")
    if values.shape != counts.shape:
        raise InvalidValueError(f"transform must give the shape {counts.shape} of the counts, got {values.shape}.")
    return values
