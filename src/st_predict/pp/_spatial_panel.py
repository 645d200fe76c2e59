"""Genes whose expression is spatially autocorrelated beyond sequencing depth."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.sparse import csc_array
from spatialdata import SpatialData, get_centroids
from spatialdata.models import get_table_keys
from spatialdata.transformations import get_transformation

from st_predict import metrics
from st_predict._errors import Advice, InvalidValueError, NotFoundError
from st_predict._keys import Keys
from st_predict._progress import track
from st_predict.io import read_spots
from st_predict.pp._residuals import pearson_residuals

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray
    from scipy.sparse import csr_array

__all__ = ["PlacedCounts", "find_places", "rank_spatial"]

N_NEIGHBOURS = 6
"""Number of neighbours per spot, as on the hexagonal lattice of Visium."""

BLOCK = 2**23
"""Number of residuals held in memory at a time."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacedCounts:
    """Counts and positions of one section.

    Parameters
    ----------
    label
        Name of the section, for messages.
    names
        Names of the genes.
    counts
        ``(n_spots, n_genes)`` raw counts.
    xy
        ``(n_spots, 2)`` positions, in any unit of length.
    """

    label: str
    names: pd.Index
    counts: csr_array
    xy: NDArray[np.float64]


def find_places(
    data: AnnData | SpatialData, table: AnnData, *, table_key: str | None, label: str
) -> dict[str, tuple[NDArray[np.intp], NDArray[np.float64]]]:
    """Rows and positions of the spots of each section of a table.

    Parameters
    ----------
    data
        Table, or the object that holds it.
    table
        Table; each annotated region is a section.
    table_key
        Key of the table, if ``data`` is a :class:`~spatialdata.SpatialData` object.
    label
        Name of the table, for messages.

    Returns
    -------
    dict of str to tuple
        Rows ``(n_spots,)`` and positions ``(n_spots, 2)`` per section, by label.

    Raises
    ------
    KeyError
        If a region is not an element of ``data``.
    ValueError
        If positions are missing or not finite.
    """
    regions, region_key, instance_key = _annotated(table)
    places = {}
    for region in regions:
        name = label if len(regions) == 1 else f"{label}, region {region!r}"
        rows = np.arange(table.n_obs) if region is None else np.flatnonzero(table.obs[region_key] == region)
        if len(rows) == 0:
            continue
        if region is None or not isinstance(data, SpatialData):
            xy = _stored_xy(table, name)[rows]
        elif len(data.images) == 1 and region not in data.labels:
            xy = read_spots(data, table_key=table_key, region=region).xy
        else:
            xy = _centroids(data, region, table.obs[instance_key].iloc[rows], name)
        if not np.isfinite(xy).all():
            raise InvalidValueError(f"{name} has positions that are NaN or infinite.", "leave these spots out")
        places[name] = rows, xy
    return places


def _annotated(table: AnnData) -> tuple[list[Any], Any, Any]:
    """Regions, their column and the instance column; the only region is ``None`` if the table annotates nothing."""
    try:
        regions, region_key, instance_key = get_table_keys(table)
    except ValueError:
        return [None], None, None
    if not regions:
        return [None], None, None
    return [regions] if isinstance(regions, str) else list(regions), region_key, instance_key


def _stored_xy(table: AnnData, label: str) -> NDArray[np.float64]:
    if Keys.SPATIAL not in table.obsm:
        raise InvalidValueError(
            f"{label} has no spot positions, which the method 'spatial' needs; .obsm has {sorted(table.obsm)}.",
            f"store x and y in .obsm[{Keys.SPATIAL!r}]",
            "pass the SpatialData object with the spots' shapes",
            Advice("select genes by another method with {}", "method"),
            Advice("name the genes with {}", "panel"),
        )
    try:
        xy = np.asarray(table.obsm[Keys.SPATIAL], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidValueError(f".obsm[{Keys.SPATIAL!r}] of {label} must be numbers: {error}.") from error
    if xy.ndim != 2 or xy.shape[1] != 2:
        raise InvalidValueError(f".obsm[{Keys.SPATIAL!r}] of {label} must have the shape (n_obs, 2), got {xy.shape}.")
    return xy


def _centroids(sdata: SpatialData, region: str, instances: pd.Series, label: str) -> NDArray[np.float64]:
    if region not in sdata:
        raise NotFoundError(f"{label}: no element {region!r} in sdata; there are shapes {sorted(sdata.shapes)}.")
    element = sdata[region]
    system = min(get_transformation(element, get_all=True))
    centroids = get_centroids(element, coordinate_system=system).compute(scheduler="synchronous")
    rows = centroids.index.get_indexer(pd.Index(instances))
    if n_missing := int((rows < 0).sum()):
        raise InvalidValueError(f"{label}: {n_missing} of {len(rows)} rows of the table are not in {region!r}.")
    return centroids[["x", "y"]].to_numpy(dtype=np.float64)[rows]


def rank_spatial(sections: Sequence[PlacedCounts], *, min_mean: float, fdr: float) -> tuple[list[str], int]:
    """Rank the spatially autocorrelated genes.

    Parameters
    ----------
    sections
        Counts and positions of each section.
    min_mean
        Minimum mean count per spot in every section.
    fdr
        False discovery rate per section.

    Returns
    -------
    tuple of list and int
        Genes that pass in at least half of the sections, by falling autocorrelation, and the number of candidates.
    """
    from scipy.stats import false_discovery_control, rankdata

    kept = [_without_empty(section) for section in sections]
    candidates = _candidates(kept, min_mean)
    if len(candidates) == 0:
        return [], 0
    ranks, n_passed = np.zeros(len(candidates)), np.zeros(len(candidates), dtype=np.int64)
    for section in track(kept, "Testing genes", len(kept), unit="section"):
        moran, p = _test(section, candidates)
        passed = false_discovery_control(p) <= fdr
        ranks += rankdata(-moran)
        n_passed += passed
        logger.info("%s: %d of %d genes are spatially autocorrelated.", section.label, passed.sum(), len(candidates))
    passing = np.flatnonzero(2 * n_passed >= len(kept))
    logger.info(
        "%d candidates have a mean count of at least %g in each of %d sections; %d pass a false discovery rate of %g in "
        "at least half of them.",
        *(len(candidates), min_mean, len(kept), len(passing), fdr),
    )
    # candidates are sorted, so ties are broken by name
    return candidates[passing[np.argsort(ranks[passing], kind="stable")]].tolist(), len(candidates)


def _without_empty(section: PlacedCounts) -> PlacedCounts:
    measured = np.flatnonzero(section.counts.sum(axis=1) > 0)
    if len(measured) <= N_NEIGHBOURS:
        raise InvalidValueError(
            f"{section.label} has {len(measured)} spots with counts; spatial autocorrelation needs at least "
            f"{N_NEIGHBOURS + 1}.",
            "leave this section out",
            Advice("select genes by another method with {}", "method"),
            Advice("name the genes with {}", "panel"),
        )
    if n_empty := section.counts.shape[0] - len(measured):
        logger.info("%s: %d spots without counts are left out.", section.label, n_empty)
    return PlacedCounts(
        label=section.label, names=section.names, counts=section.counts[measured], xy=section.xy[measured]
    )


def _candidates(sections: Sequence[PlacedCounts], min_mean: float) -> pd.Index:
    """Genes with enough counts in every section, sorted."""
    enough = [
        set(section.names[section.counts.sum(axis=0, dtype=np.float64) >= min_mean * section.counts.shape[0]])
        for section in sections
    ]
    return pd.Index(sorted(set.intersection(*enough)), dtype=object)


def _test(section: PlacedCounts, genes: pd.Index) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Moran's I of the Pearson residuals of some genes, and p-values, ``(n_genes,)`` each; constant genes cannot pass."""
    counts = csc_array(section.counts, dtype=np.float64)
    totals, sums = counts.sum(axis=1), counts.sum(axis=0)
    n_spots = len(totals)
    columns = section.names.get_indexer(genes)
    weights = metrics.neighbour_weights(section.xy, k=N_NEIGHBOURS)
    moran, p = np.empty(len(genes)), np.empty(len(genes))
    step = max(1, BLOCK // n_spots)
    for start in range(0, len(genes), step):
        some = columns[start : start + step]
        residuals = pearson_residuals(
            counts[:, some].toarray(), totals, sums[some] / sums.sum(), clip=float(np.sqrt(n_spots))
        )
        moran[start : start + step] = metrics.morans_i(residuals, weights)
        p[start : start + step] = metrics.morans_i_pvalues(residuals, weights, assumption="signs")
    return np.nan_to_num(moran, nan=-1 / (n_spots - 1)), np.nan_to_num(p, nan=1.0)
