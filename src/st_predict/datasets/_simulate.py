"""Simulated sections whose expression depends on the image in a known way, at known scales."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import dask.array as da
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree
from spatialdata import SpatialData
from spatialdata.models import ShapesModel, TableModel

from st_predict._errors import Advice, InvalidValueError
from st_predict._keys import Keys
from st_predict._multiscale import halve, image_of_levels, transformations
from st_predict._progress import shows_progress, track
from st_predict._reprs import ShortRepr
from st_predict._validated import Count, Natural, Positive, check
from st_predict.datasets._histology import GRID_UM, Histology, draw_style, grow_tissue

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from xarray import DataArray, DataTree

__all__ = ["SectionTruth", "Simulation", "simulate", "toy"]

PITCH_UM, SPOT_UM = 200.0, 100.0
"""Lattice of legacy Spatial Transcriptomics, as ``uns["assay"]`` says."""

CROP_PX = 224
"""Side of the finest crop of M2OST; the fields of its other levels are two and four times as wide."""

N_LEVELS = 4
CHUNK = 512

MAX_MEAN_COUNT = 1e6
"""Larger means leave the range of whole numbers in the tails."""

_LARGER = (Advice("show more tissue with a larger {}", "shape"), Advice("with a larger {}", "mpp"))

DISPERSION = 0.08
"""Overdispersion of the negative binomial: variance beyond Poisson over the squared mean."""

DEPTH_SPREAD, PATIENT_SPREAD, SECTION_SPREAD = 0.3, 0.3, 0.1
"""Standard deviations, in natural logarithms, of spot depth and of effects on genes."""

COVARIATES = pd.DataFrame(
    [
        ("spot_epithelium", "nuclei", 0.35, 0.32),
        ("spot_nuclei", "nuclei", 5500.0, 3700.0),
        ("spot_nucleus_area", "nuclei", 38.0, 9.5),
        ("near_epithelium", "region", 0.31, 0.16),
        ("near_lymphocytes", "region", 600.0, 640.0),
        ("far_epithelium", "region", 0.26, 0.115),
        ("far_lymphocytes", "region", 480.0, 350.0),
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
        ``*_lymphocytes`` are numbers per square millimetre, ``*_area`` is in square micrometres.
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


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class Simulation(ShortRepr):
    """Simulated sections with their ground truth.

    Parameters
    ----------
    sections
        Mapping from section name (``"P1S1"``: patient 1, section 1) to data.
    truth
        Mapping from section name to the ground truth of its counts.
    genes
        One row per gene: its ``programme`` (``"nuclei"``: driven by the spot itself; ``"region"``: by its surroundings;
        ``"none"``: by nothing), the ``covariate`` that drives it (empty for ``"none"``), and the ``effect`` of one standard
        deviation of that covariate on the logarithm of the rate.

    Examples
    --------
    >>> import st_predict as stp
    >>> simulation = stp.datasets.simulate(1, 1, n_genes=10, shape=(400, 400), seed=3)
    >>> free = simulation.genes["programme"] == "none"
    >>> simulation.genes.index[free].tolist()  # genes that do not depend on the tissue
    ['GENE09', 'GENE10']
    """

    sections: dict[str, SpatialData]
    truth: dict[str, SectionTruth]
    genes: pd.DataFrame


@shows_progress
def simulate(
    n_patients: int = 2,
    n_sections: int = 2,
    *,
    n_genes: int = 60,
    shape: tuple[int, int] = (2000, 2000),
    mpp: float = 1.0,
    mean_count: float = 20.0,
    seed: int = 0,
    progress: bool | None = None,
) -> Simulation:
    """Simulate tissue sections with images, spots and counts, offline.

    The image shows epithelium in nests and in glands with a lumen, stroma, fat and clusters of lymphocytes, in the
    colours of hematoxylin and eosin. Two genes in five depend on the tissue inside the spot. Two in five depend on its
    surroundings, outside the finest crop of :mod:`M2OST <st_predict.models.m2ost>`. One in five depends on neither.
    Patients differ in stain, in tissue composition and in the level of every gene.

    Parameters
    ----------
    n_patients
        Number of patients.
    n_sections
        Number of sections per patient.
    n_genes
        Number of genes.
    shape
        Height and width of the images in pixels; multiples of 8, as each level halves them.
    mpp
        Micrometres per pixel. Crops of 224 px have fields of view of 1, 2 and 4 times ``224 * mpp``.
    mean_count
        Expected count of a typical gene in a typical spot.
    seed
        Random seed. A section depends only on the seed and its name, not on the numbers of patients and sections.
    progress
        Whether to show progress bars. By default in a terminal or a notebook, after two seconds.

    Returns
    -------
    Simulation
        Sections with their ground truth. Each section has the image ``"he"`` in four levels, the spots ``"spots"`` (100
        um, at a pitch of 200 um) and the table ``"table"`` with counts, in the coordinate systems ``"global"`` (pixels)
        and ``"um"``.

    Raises
    ------
    ValueError
        If an argument is of another type or out of range, or the image is too small for a spot on tissue.

    Notes
    -----
    Counts are negative binomial with the mean ``depth * exp(log_rate)`` and the variance ``mean + 0.08 * mean**2``.
    ``log_rate`` is linear in one covariate per gene, from 2 standard deviations below its centre to 2.5 above, and constant
    beyond. Driven genes come in pairs, one up and one down, so the sum of a spot hardly depends on the tissue. With the
    default arguments, a driven gene's log counts correlate with their expectation by 0.65 to 0.8 within a section: the noise
    ceiling of a perfect model.

    Examples
    --------
    >>> import st_predict as stp
    >>> simulation = stp.datasets.simulate(1, 1, shape=(400, 400), seed=3)
    >>> list(simulation.sections)
    ['P1S1']
    >>> simulation.genes["programme"].value_counts().to_dict()
    {'nuclei': 24, 'region': 24, 'none': 12}
    """
    _check(n_patients, n_sections, n_genes, shape=shape, mpp=mpp, mean_count=mean_count, seed=seed)
    genes = _draw_genes(np.random.default_rng([seed, 0]), n_genes)
    sections, truth = {}, {}
    patients = range(1, n_patients + 1)
    for patient in track(patients, "Simulating", n_patients, unit="patient"):
        rng = np.random.default_rng([seed, 1, patient])
        style = draw_style(rng)
        level = np.log(mean_count) + genes["baseline"].to_numpy() + rng.normal(0, PATIENT_SPREAD, n_genes)
        for section in range(1, n_sections + 1):
            name = f"P{patient}S{section}"
            rng = np.random.default_rng([seed, 2, patient, section])
            tissue = grow_tissue(rng, style, shape=shape, mpp=mpp)
            spots = _lay_spots(tissue, name, shape=shape, mpp=mpp)
            truth[name] = _draw_truth(rng, tissue, spots, genes, level=level, mpp=mpp)
            counts = _draw_counts(rng, truth[name])
            sections[name] = _assemble(
                tissue.image, spots, counts, genes=genes.index, patient=f"P{patient}", section=name, mpp=mpp
            )
    return Simulation(sections=sections, truth=truth, genes=genes[["programme", "covariate", "effect"]])


def toy() -> SpatialData:
    """Simulate one small section: 19 spots, 8 genes, an image of 720 x 880 px.

    Returns
    -------
    SpatialData
        The section, with the elements of :func:`simulate`; always the same.

    Examples
    --------
    >>> import st_predict as stp
    >>> stp.datasets.toy()["table"].shape
    (19, 8)
    """
    return copy.deepcopy(_toy())


@cache
def _toy() -> SpatialData:
    return simulate(1, 1, n_genes=8, shape=(720, 880), mpp=1.2, seed=0).sections["P1S1"]


def _check(
    n_patients: int, n_sections: int, n_genes: int, *, shape: tuple[int, int], mpp: float, mean_count: float, seed: int
) -> None:
    for name, number in {"n_patients": n_patients, "n_sections": n_sections, "n_genes": n_genes}.items():
        check(name, number, Count)
    if check("mean_count", mean_count, Positive) > MAX_MEAN_COUNT:
        raise InvalidValueError(f"mean_count must be at most {MAX_MEAN_COUNT:g}, got {mean_count}.")
    if check("mpp", mpp, Positive) > GRID_UM:
        raise InvalidValueError(
            f"mpp must be at most {GRID_UM:g}, got {mpp}: pixels wider than that cannot resolve nuclei."
        )
    check("seed", seed, Natural)
    whole = 2 ** (N_LEVELS - 1)
    if any(side % whole for side in check("shape", shape, tuple[Count, Count])):
        raise InvalidValueError(f"shape must be two positive multiples of {whole} (height, width), got {shape}.")
    if min(shape) * mpp < PITCH_UM:
        raise InvalidValueError(f"{_extent(shape, mpp)} are too small for a spot.", *_LARGER)


def _extent(shape: tuple[int, int], mpp: float) -> str:
    return f"{shape[0]} x {shape[1]} px at {mpp:g} um/px ({shape[0] * mpp:g} x {shape[1] * mpp:g} um)"


def _draw_genes(rng: np.random.Generator, n_genes: int) -> pd.DataFrame:
    """Draw two genes in five per programme; the last one in five is free."""
    n_driven = round(0.4 * n_genes)
    programme = np.repeat(["nuclei", "region", "none"], [n_driven, n_driven, n_genes - 2 * n_driven])
    baseline, effect = rng.normal(0, 0.5, n_genes), rng.uniform(0.5, 0.8, n_genes) * (programme != "none")
    covariate = np.full(n_genes, "", dtype=object)
    # genes come in pairs with opposite effects: otherwise the sum of a spot would follow the tissue, and with it every
    # normalised gene, even free ones
    turn = np.arange(n_driven)
    for name in ("nuclei", "region"):
        drivers = COVARIATES.index[COVARIATES["programme"] == name]
        where = np.flatnonzero(programme == name)
        covariate[where] = drivers[turn // 2 % len(drivers)]
        baseline[where] = baseline[where[turn // 2 * 2]]
        effect[where] = effect[where[turn // 2 * 2]] * (1 - 2 * (turn % 2))
    names = [f"GENE{i:0{len(str(n_genes))}d}" for i in range(1, n_genes + 1)]
    columns = {"programme": programme, "covariate": covariate, "effect": effect, "baseline": baseline}
    return pd.DataFrame(columns, index=pd.Index(names, name="gene"))


def _lay_spots(tissue: Histology, section: str, *, shape: tuple[int, int], mpp: float) -> pd.DataFrame:
    """Spots with at least half their area on tissue: ``x`` and ``y`` in micrometres, and their place on the lattice."""
    rows, cols = (np.arange(int(side * mpp / PITCH_UM)) for side in shape)
    margin = [(side * mpp - n * PITCH_UM) / 2 for side, n in zip(shape, (len(rows), len(cols)), strict=True)]
    row, col = (index.ravel() for index in np.meshgrid(rows, cols, indexing="ij"))
    x, y = margin[1] + (col + 0.5) * PITCH_UM, margin[0] + (row + 0.5) * PITCH_UM
    names = [f"{section}_{c}x{r}" for c, r in zip(col + 1, row + 1, strict=True)]
    spots = pd.DataFrame({"x": x, "y": y, Keys.ARRAY_ROW: row + 1, Keys.ARRAY_COL: col + 1}, index=names)
    spots = spots[_within_spot(_cells(tissue.body), spots[["x", "y"]].to_numpy()) * GRID_UM**2 >= 0.5]
    if spots.empty:
        raise InvalidValueError(f"No spot lies on the tissue of {_extent(shape, mpp)}.", *_LARGER)
    return spots


def _cells(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Centres in micrometres of the cells of a mask: ``(n_cells, 2)``, x and y."""
    row, col = np.nonzero(mask)
    return np.column_stack([col + 0.5, row + 0.5]).astype(np.float64) * GRID_UM


def _within_spot(things: NDArray[np.float64], xy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Number per square micrometre in each spot."""
    return _count(things, xy, SPOT_UM / 2, square=False) / (np.pi * SPOT_UM**2 / 4)


def _around(things: NDArray[np.float64], xy: NDArray[np.float64], half: float) -> NDArray[np.float64]:
    """Number per square micrometre between a square around each spot and the square twice as wide; 0 outside the image."""
    between = _count(things, xy, 2 * half, square=True) - _count(things, xy, half, square=True)
    return between / (16 * half**2 - 4 * half**2)


def _count(things: NDArray[np.float64], xy: NDArray[np.float64], radius: float, *, square: bool) -> NDArray[np.float64]:
    found = cKDTree(things).query_ball_point(xy, radius, p=np.inf if square else 2.0, return_length=True)
    return np.asarray(found, dtype=np.float64)


def _draw_truth(
    rng: np.random.Generator,
    tissue: Histology,
    spots: pd.DataFrame,
    genes: pd.DataFrame,
    *,
    level: NDArray[np.float64],
    mpp: float,
) -> SectionTruth:
    covariates = _measure(tissue, spots, mpp=mpp)
    standard = (covariates - COVARIATES["centre"]) / COVARIATES["spread"]
    standard[""] = 0.0
    # genes saturate, otherwise a few spots would dominate every correlation
    driven = standard[genes["covariate"]].clip(-2.0, 2.5).to_numpy() * genes["effect"].to_numpy()
    log_rate = level + rng.normal(0, SECTION_SPREAD, len(genes)) + driven
    return SectionTruth(
        log_rate=pd.DataFrame(log_rate, index=spots.index, columns=genes.index),
        covariates=covariates,
        depth=pd.Series(np.exp(rng.normal(0, DEPTH_SPREAD, len(spots))), index=spots.index, name="depth"),
    )


def _measure(tissue: Histology, spots: pd.DataFrame, *, mpp: float) -> pd.DataFrame:
    xy = spots[["x", "y"]].to_numpy()
    nuclei = tissue.nuclei[["x", "y"]].to_numpy(np.float64)
    lymphocytes = nuclei[(tissue.nuclei["kind"] == "lymphocyte").to_numpy()]
    epithelium = _cells(tissue.epithelium)
    cell, mm2 = GRID_UM**2, 1e6
    near = CROP_PX * mpp / 2
    columns = {
        "spot_epithelium": _within_spot(epithelium, xy) * cell,
        "spot_nuclei": _within_spot(nuclei, xy) * mm2,
        "spot_nucleus_area": _nucleus_area(tissue.nuclei, xy),
        "near_epithelium": _around(epithelium, xy, near) * cell,
        "near_lymphocytes": _around(lymphocytes, xy, near) * mm2,
        "far_epithelium": _around(epithelium, xy, 2 * near) * cell,
        "far_lymphocytes": _around(lymphocytes, xy, 2 * near) * mm2,
    }
    return pd.DataFrame(columns, index=spots.index)[list(COVARIATES.index)]


def _nucleus_area(nuclei: pd.DataFrame, xy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean area of the nuclei in each spot, shrunk towards the typical area where they are few."""
    inside = cKDTree(nuclei[["x", "y"]].to_numpy()).query_ball_point(xy, SPOT_UM / 2)
    area = nuclei["area"].to_numpy()
    usual, weight = COVARIATES.loc["spot_nucleus_area", "centre"], 5
    return np.array([(area[i].sum() + weight * usual) / (len(i) + weight) for i in inside])


def _draw_counts(rng: np.random.Generator, truth: SectionTruth) -> NDArray[np.int64]:
    mean = truth.depth.to_numpy()[:, None] * np.exp(truth.log_rate.to_numpy())
    # a Poisson variable whose mean is gamma distributed is negative binomial
    return rng.poisson(lam=mean * rng.gamma(1 / DISPERSION, DISPERSION, mean.shape))


def _assemble(
    image: NDArray[np.uint8],
    spots: pd.DataFrame,
    counts: NDArray[np.int64],
    *,
    genes: pd.Index,
    patient: str,
    section: str,
    mpp: float,
) -> SpatialData:
    """Assemble a section with the elements of :func:`st_predict.io.read_legacy_st`."""
    centres = spots[["x", "y"]].to_numpy() / mpp
    obs = spots[[Keys.ARRAY_ROW, Keys.ARRAY_COL]].assign(
        **{Keys.PATIENT: pd.Categorical([patient] * len(spots)), Keys.SECTION: pd.Categorical([section] * len(spots))},
        region=pd.Categorical(["spots"] * len(spots)),
        instance_id=spots.index.to_numpy(),
    )
    table = AnnData(
        csr_matrix(counts, dtype=np.float32),
        obs=obs,
        var=pd.DataFrame(index=genes),
        obsm={Keys.SPATIAL: centres},
        uns={Keys.ASSAY: "legacy_st", Keys.MPP_SOURCE: "simulated"},
    )
    circles = ShapesModel.parse(
        centres,
        geometry=0,
        radius=SPOT_UM / 2 / mpp,
        index=table.obs_names,
        transformations=transformations(mpp),
    )
    return SpatialData(
        images={"he": _pyramid(image, mpp=mpp)},
        shapes={"spots": circles},
        tables={
            Keys.TABLE: TableModel.parse(table, region="spots", region_key="region", instance_key="instance_id"),
        },
    )


def _pyramid(image: NDArray[np.uint8], *, mpp: float) -> DataArray | DataTree:
    levels = [image]
    while len(levels) < N_LEVELS:
        levels.append(halve(levels[-1]))
    return image_of_levels(
        [da.from_array(level.transpose(2, 0, 1), chunks=(3, CHUNK, CHUNK), name=False) for level in levels],  # type: ignore[no-untyped-call]
        mpp=mpp,
    )
