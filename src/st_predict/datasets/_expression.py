"""Law from tissue to counts in simulated sections: covariates, rates, depth, counts and noise ceilings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from scipy import ndimage
from scipy.spatial import cKDTree

from st_predict._reprs import ShortRepr
from st_predict.datasets._histology import GRID_UM, Histology, smooth_noise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = [
    "SPOT_UM",
    "Depth",
    "Noise",
    "Programme",
    "SectionTruth",
    "ceilings",
    "draw_counts",
    "draw_genes",
    "draw_truth",
]

Programme = Literal["nuclei", "region", "cross"]
Depth = Literal["random", "cellularity"]

SPOT_UM = 100.0
"""Spot diameter of legacy Spatial Transcriptomics."""

CROP_PX = 224
"""Side of the finest crop of M2OST; the fields of its other levels are two and four times as wide."""

DISPERSION = 0.08
"""Overdispersion of the negative binomial: variance beyond Poisson over the squared mean."""

DEPTH_SPREAD, PATIENT_SPREAD, SECTION_SPREAD = 0.3, 0.3, 0.1
"""Standard deviations, in natural logarithms, of spot depth and of effects on genes."""

CELLS_UM, CELLS_CENTRE, CELLS_SPREAD, CELLS_FLOOR = 150.0, 8.44, 0.36, 200.0
"""Cellularity: log of nuclei per mm2 plus a floor, blurred; centre and spread are constants from many sections."""

DEPTH_SHARES, DRIFT_UM = (0.55, 0.4, 0.1), 350.0
"""Effects on log depth of cellularity, of a drift over the section, and of single spots; width of the drift."""

THETA = 100.0
"""Overdispersion that Pearson residuals assume, as in :class:`st_predict.specs.TargetSpec`."""

COVARIATES = pd.DataFrame(
    [
        ("spot_epithelium", "nuclei", 0.35, 0.32),
        ("spot_nuclei", "nuclei", 5500.0, 3700.0),
        ("spot_nucleus_area", "nuclei", 38.0, 9.5),
        ("near_epithelium", "region", 0.31, 0.16),
        ("near_lymphocytes", "region", 600.0, 640.0),
        ("far_epithelium", "region", 0.26, 0.115),
        ("far_lymphocytes", "region", 480.0, 350.0),
        ("spot_epithelium:far_epithelium", "cross", 0.05, 0.39),
        ("spot_nuclei:far_lymphocytes", "cross", 0.01, 0.375),
    ],
    columns=["name", "programme", "centre", "spread"],
).set_index("name")
"""Covariates that drive genes. Centre and spread are constants from many sections, so one law holds in all sections."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class SectionTruth(ShortRepr):
    """Ground truth of the counts of one section; rows are the spots of its table.

    Parameters
    ----------
    log_rate
        Noise-free natural logarithm of the expected count at depth 1, ``(n_spots, n_genes)``.
    covariates
        Measurements on the plan of the tissue, ``(n_spots, n_covariates)``. ``spot_*``: inside the spot. ``near_*``: between
        one and two fields of view. ``far_*``: between two and four. ``*_epithelium`` is a share of the area, ``*_nuclei`` and
        ``*_lymphocytes`` are numbers per square millimetre, ``*_area`` is in square micrometres. ``a:b``, for the programme
        ``"cross"``: the product of ``a`` and ``b``, each standardised and passed through ``tanh``.
    depth
        Sequencing depth, ``(n_spots,)``: the expected count is ``depth * exp(log_rate)``.

    Examples
    --------
    >>> import numpy as np
    >>> import st_predict as stp
    >>> simulation = stp.datasets.simulate(1, 1, n_genes=10, shape=(400, 400), seed=3)
    >>> truth = simulation.truth["P1S1"]
    >>> expected = np.exp(truth.log_rate).mul(truth.depth, axis=0)  # counts without noise
    >>> counts = simulation.sections["P1S1"]["table"].to_df()
    >>> round(float(counts.to_numpy().sum() / expected.to_numpy().sum()), 1)
    1.1
    """

    log_rate: pd.DataFrame
    covariates: pd.DataFrame
    depth: pd.Series


@dataclass(frozen=True, kw_only=True, slots=True)
class Noise:
    """Variation that does not come from the tissue.

    Parameters
    ----------
    depth
        What sequencing depth follows.
    shift
        Relative size of the differences in gene level between patients and between sections.
    dispersion
        Overdispersion of the counts.
    """

    depth: Depth
    shift: float
    dispersion: float


def draw_genes(rng: np.random.Generator, n_genes: int, programmes: Sequence[Programme]) -> pd.DataFrame:
    """Divide four genes in five among the programmes; the last one in five is free."""
    named = [name for name in dict.fromkeys(COVARIATES["programme"]) if name in programmes]
    n_driven = min(round(0.8 / len(named) * n_genes), n_genes // len(named)) if named else 0
    programme = np.repeat([*named, "none"], [n_driven] * len(named) + [n_genes - len(named) * n_driven])
    baseline, effect = rng.normal(0, 0.5, n_genes), rng.uniform(0.5, 0.8, n_genes) * (programme != "none")
    covariate = np.full(n_genes, "", dtype=object)
    # genes come in pairs with opposite effects: otherwise the sum of a spot would follow the tissue, and with it every
    # normalised gene, even free ones
    turn = np.arange(n_driven)
    for name in named:
        drivers = COVARIATES.index[COVARIATES["programme"] == name]
        where = np.flatnonzero(programme == name)
        covariate[where] = drivers[turn // 2 % len(drivers)]
        baseline[where] = baseline[where[turn // 2 * 2]]
        effect[where] = effect[where[turn // 2 * 2]] * (1 - 2 * (turn % 2))
    names = [f"GENE{i:0{len(str(n_genes))}d}" for i in range(1, n_genes + 1)]
    columns = {"programme": programme, "covariate": covariate, "effect": effect, "baseline": baseline}
    return pd.DataFrame(columns, index=pd.Index(names, name="gene"))


def draw_truth(
    rng: np.random.Generator,
    tissue: Histology,
    spots: pd.DataFrame,
    genes: pd.DataFrame,
    *,
    level: NDArray[np.float64],
    mpp: float,
    noise: Noise,
) -> SectionTruth:
    """Draw rates and depth of the spots of a section."""
    measured = _measure(tissue, spots, mpp=mpp)
    products = [name for name in COVARIATES.index if ":" in name and name in set(genes["covariate"])]
    covariates = measured.assign(**{name: _product(measured, name) for name in products})
    standard = _standardise(covariates)
    standard[""] = 0.0
    # genes saturate, otherwise a few spots would dominate every correlation
    driven = standard[genes["covariate"]].clip(-2.0, 2.5).to_numpy() * genes["effect"].to_numpy()
    log_rate = level + rng.normal(0, SECTION_SPREAD * noise.shift, len(genes)) + driven
    log_depth = rng.normal(0, DEPTH_SPREAD, len(spots))
    if noise.depth == "cellularity":
        log_depth = _depth_of_cells(rng.spawn(1)[0], tissue, spots, log_depth / DEPTH_SPREAD)
    return SectionTruth(
        log_rate=pd.DataFrame(log_rate, index=spots.index, columns=genes.index),
        covariates=covariates,
        depth=pd.Series(np.exp(log_depth), index=spots.index, name="depth"),
    )


def draw_counts(rng: np.random.Generator, truth: SectionTruth, dispersion: float) -> NDArray[np.int64]:
    """Draw negative binomial counts, ``(n_spots, n_genes)``."""
    mean = _mean_counts(truth)
    if dispersion:
        # a Poisson variable whose mean is gamma distributed is negative binomial
        mean *= rng.gamma(1 / dispersion, dispersion, mean.shape)
    return rng.poisson(lam=mean)


def ceilings(truth: SectionTruth, dispersion: float) -> pd.DataFrame:
    """Highest correlations with Pearson residuals of the counts, from the law; one row per gene.

    ``ceiling``: of a predictor that knows the truth. ``noise_ceiling``: of one that also knows the overdispersion, as far as
    it is not counting noise; :func:`st_predict.metrics.noise_ceiling` estimates it. Exact to first order: totals are taken
    to be expected ones in denominators.
    """
    mean = _mean_counts(truth)
    share = mean.sum(axis=0) / mean.sum()
    usual = mean.sum(axis=1, keepdims=True) * share
    scale = usual + usual**2 / THETA
    signal = ((mean - usual) / np.sqrt(scale)).var(axis=0)
    counting = (_spread_of_rest(mean, share) / scale).mean(axis=0)
    beyond = (_spread_of_rest(dispersion * mean**2, share) / scale).mean(axis=0)
    whole = np.where(counting > 0, signal + beyond + counting, np.nan)  # a gene without others is its own total
    return pd.DataFrame(
        {"ceiling": np.sqrt(signal / whole), "noise_ceiling": np.sqrt((signal + beyond) / whole)},
        index=truth.log_rate.columns,
    )


def cells_of(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Centres in micrometres of the cells of a mask: ``(n_cells, 2)``, x and y."""
    row, col = np.nonzero(mask)
    return np.column_stack([col + 0.5, row + 0.5]).astype(np.float64) * GRID_UM


def within_spot(things: NDArray[np.float64], xy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Number per square micrometre in each spot."""
    return _count(things, xy, SPOT_UM / 2, square=False) / (np.pi * SPOT_UM**2 / 4)


def _mean_counts(truth: SectionTruth) -> NDArray[np.float64]:
    return truth.depth.to_numpy()[:, None] * np.exp(truth.log_rate.to_numpy())


def _spread_of_rest(variance: NDArray[np.float64], share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Variance of ``count - share * total`` for independent genes; the total has the gene itself in it."""
    return (1 - 2 * share) * variance + share**2 * variance.sum(axis=1, keepdims=True)


def _standardise(covariates: pd.DataFrame) -> pd.DataFrame:
    known = COVARIATES.loc[covariates.columns]
    return (covariates - known["centre"]) / known["spread"]


def _product(measured: pd.DataFrame, name: str) -> NDArray[np.float64]:
    """Product of two covariates of different scales; bounded, so that it is hardly correlated with either."""
    first, second = np.tanh(_standardise(measured[name.split(":")])).to_numpy().T
    return first * second


def _depth_of_cells(
    rng: np.random.Generator, tissue: Histology, spots: pd.DataFrame, single: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Log depth ``(n_spots,)``, 1 on average; ``single`` is the part of single spots, with unit variance."""
    shape = tissue.body.shape
    row, col = (spots[axis].to_numpy() // GRID_UM for axis in ("y", "x"))
    place = (row.astype(np.intp), col.astype(np.intp))
    edges = [[0.0, n * GRID_UM] for n in shape]
    found, *_ = np.histogram2d(tissue.nuclei["y"], tissue.nuclei["x"], bins=shape, range=edges)
    blurred = ndimage.gaussian_filter(found * 1e6 / GRID_UM**2, CELLS_UM / GRID_UM, mode="constant")[place]
    cells = (np.log(blurred + CELLS_FLOOR) - CELLS_CENTRE) / CELLS_SPREAD
    drift = smooth_noise(rng, shape, DRIFT_UM / GRID_UM)[place]
    parts = [cells.clip(-3.0, 2.0), drift, single]
    log_depth = np.sum([share * part for share, part in zip(DEPTH_SHARES, parts, strict=True)], axis=0)
    return log_depth - np.log(np.exp(log_depth).mean())


def _around(things: NDArray[np.float64], xy: NDArray[np.float64], half: float) -> NDArray[np.float64]:
    """Number per square micrometre between a square around each spot and the square twice as wide; 0 outside the image."""
    between = _count(things, xy, 2 * half, square=True) - _count(things, xy, half, square=True)
    return between / (16 * half**2 - 4 * half**2)


def _count(things: NDArray[np.float64], xy: NDArray[np.float64], radius: float, *, square: bool) -> NDArray[np.float64]:
    found = cKDTree(things).query_ball_point(xy, radius, p=np.inf if square else 2.0, return_length=True)
    return np.asarray(found, dtype=np.float64)


def _measure(tissue: Histology, spots: pd.DataFrame, *, mpp: float) -> pd.DataFrame:
    xy = spots[["x", "y"]].to_numpy()
    nuclei = tissue.nuclei[["x", "y"]].to_numpy(np.float64)
    lymphocytes = nuclei[(tissue.nuclei["kind"] == "lymphocyte").to_numpy()]
    epithelium = cells_of(tissue.epithelium)
    cell, mm2 = GRID_UM**2, 1e6
    near = CROP_PX * mpp / 2
    columns = {
        "spot_epithelium": within_spot(epithelium, xy) * cell,
        "spot_nuclei": within_spot(nuclei, xy) * mm2,
        "spot_nucleus_area": _nucleus_area(tissue.nuclei, xy),
        "near_epithelium": _around(epithelium, xy, near) * cell,
        "near_lymphocytes": _around(lymphocytes, xy, near) * mm2,
        "far_epithelium": _around(epithelium, xy, 2 * near) * cell,
        "far_lymphocytes": _around(lymphocytes, xy, 2 * near) * mm2,
    }
    return pd.DataFrame(columns, index=spots.index)


def _nucleus_area(nuclei: pd.DataFrame, xy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean area of the nuclei in each spot, shrunk towards the typical area where they are few."""
    inside = cKDTree(nuclei[["x", "y"]].to_numpy()).query_ball_point(xy, SPOT_UM / 2)
    area = nuclei["area"].to_numpy()
    usual, weight = COVARIATES.loc["spot_nucleus_area", "centre"], 5
    return np.array([(area[i].sum() + weight * usual) / (len(i) + weight) for i in inside])
