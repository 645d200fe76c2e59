"""Simulated sections whose expression depends on the image in a known way, at known scales."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

import dask.array as da
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix
from spatialdata import SpatialData
from spatialdata.models import ShapesModel, TableModel

from st_predict._errors import Advice, InvalidValueError
from st_predict._keys import Keys
from st_predict._multiscale import halve, image_of_levels, transformations
from st_predict._progress import shows_progress, track
from st_predict._reprs import ShortRepr
from st_predict._validated import Count, Natural, NotNegative, Positive, check
from st_predict.datasets._expression import (
    DISPERSION,
    PATIENT_SPREAD,
    SPOT_UM,
    Depth,
    Noise,
    Programme,
    SectionTruth,
    ceilings,
    cells_of,
    draw_counts,
    draw_genes,
    draw_truth,
    within_spot,
)
from st_predict.datasets._histology import GRID_UM, Histology, draw_style, grow_tissue

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from xarray import DataArray, DataTree

__all__ = ["Simulation", "simulate", "toy"]

Cuts = Literal["separate", "consecutive"]

PITCH_UM = 200.0
"""Lattice of legacy Spatial Transcriptomics, as ``uns["assay"]`` says."""

N_LEVELS = 4
CHUNK = 512

MAX_MEAN_COUNT = 1e6
"""Larger means leave the range of whole numbers in the tails."""

_LARGER = (Advice("show more tissue with a larger {}", "shape"), Advice("with a larger {}", "mpp"))


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
        ``"cross"``: by both together; ``"none"``: by nothing), the ``covariate`` that drives it (empty for ``"none"``), and the ``effect`` of one standard
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
def simulate(  # noqa: PLR0913  # properties of tissue, counts and patients
    n_patients: int = 2,
    n_sections: int = 2,
    *,
    n_genes: int = 60,
    shape: tuple[int, int] = (2000, 2000),
    mpp: float = 1.0,
    mean_count: float = 20.0,
    programmes: Sequence[Programme] = ("nuclei", "region"),
    depth: Depth = "random",
    cuts: Cuts = "separate",
    stain_shift: float = 1.0,
    expression_shift: float = 1.0,
    dispersion: float = DISPERSION,
    seed: int = 0,
    progress: bool | None = None,
) -> Simulation:
    """Simulate tissue sections with images, spots and counts, offline.

    The image shows epithelium in nests and in glands with a lumen, stroma, fat and clusters of lymphocytes, in the
    colours of hematoxylin and eosin. Four genes in five depend on the tissue: on that inside the spot, or on its
    surroundings outside the finest crop of :mod:`M2OST <st_predict.models.m2ost>`, or on both together. One in five does
    not. Patients differ in stain, in tissue composition and in the level of every gene.

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
        Expected count of a typical gene in a typical spot, from below 1. The mean over genes and spots is about 1.4 times as
        large, because a few are much larger.
    programmes
        Programmes of genes, which share four genes in five equally. ``"nuclei"``: the tissue inside the spot.
        ``"region"``: its surroundings. ``"cross"``: the product of both, which neither predicts; their sum does not, either.
    depth
        What the sequencing depth of a spot follows. ``"random"``: nothing. ``"cellularity"``: mostly the density of nuclei
        within about 150 um, and a drift over the section. Neighbouring spots are then alike in depth, as in measured
        sections, and spots on fat have few counts.
    cuts
        Sections of a patient: ``"separate"`` pieces of tissue, or ``"consecutive"`` cuts of one block. The latter are laid
        out alike, but for a deformation of some 30 um; nuclei and noise are drawn anew.
    stain_shift, expression_shift
        Size of the batch effects, relative to the default; 0 for none. ``stain_shift``: colour and strength of the stains
        between patients. ``expression_shift``: level of every gene between patients (a standard deviation of 0.3, in
        natural logarithms, at 1) and between sections (0.1).
    dispersion
        Overdispersion of the counts; 0 for Poisson counts.
    seed
        Random seed. A section depends only on the seed and its name, not on the numbers of patients and sections.
    progress
        Whether to show progress bars. By default in a terminal or a notebook, after two seconds.

    Returns
    -------
    Simulation
        Sections with their ground truth. Each section has the image ``"he"`` in four levels, the spots ``"spots"`` (100
        um, at a pitch of 200 um) and the table ``"table"`` with counts, in the coordinate systems ``"global"`` (pixels)
        and ``"um"``. Its ``.var`` has the highest correlation with analytic Pearson residuals of the counts, per gene:
        ``ceiling`` for a predictor that knows the truth, ``noise_ceiling`` for one limited by counting only, which
        :func:`st_predict.metrics.noise_ceiling` estimates from counts.

    Raises
    ------
    ValueError
        If an argument is of another type or out of range, or the image is too small for a spot on tissue.

    Notes
    -----
    Counts are negative binomial with the mean ``depth * exp(log_rate)`` and the variance ``mean + dispersion * mean**2``.
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
    programmes = _check_programmes(programmes)
    noise = _check_noise(depth, shift=expression_shift, dispersion=dispersion)
    is_block = check("cuts", cuts, Cuts) == "consecutive"
    shift = check("stain_shift", stain_shift, NotNegative)
    genes = draw_genes(np.random.default_rng([seed, 0]), n_genes, programmes)
    sections, truth = {}, {}
    patients = range(1, n_patients + 1)
    for patient in track(patients, "Simulating", n_patients, unit="patient"):
        rng = np.random.default_rng([seed, 1, patient])
        style = draw_style(rng, shift=shift)
        own = rng.normal(0, PATIENT_SPREAD * noise.shift, n_genes)
        level = np.log(mean_count) + genes["baseline"].to_numpy() + own
        for section in range(1, n_sections + 1):
            name = f"P{patient}S{section}"
            rng = np.random.default_rng([seed, 2, patient, section])
            block = np.random.default_rng([seed, 3, patient]) if is_block else None
            tissue = grow_tissue(rng, style, shape=shape, mpp=mpp, block=block)
            spots = _lay_spots(tissue, name, shape=shape, mpp=mpp)
            truth[name] = draw_truth(rng, tissue, spots, genes, level=level, mpp=mpp, noise=noise)
            counts = draw_counts(rng, truth[name], noise.dispersion)
            var = ceilings(truth[name], noise.dispersion)
            sections[name] = _assemble(
                tissue.image, spots, counts, var=var, patient=f"P{patient}", section=name, mpp=mpp
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


def _check_programmes(programmes: Sequence[Programme]) -> tuple[Programme, ...]:
    found: tuple[Programme, ...] = check("programmes", programmes, tuple[Programme, ...])
    return found


def _check_noise(depth: Depth, *, shift: float, dispersion: float) -> Noise:
    return Noise(
        depth=check("depth", depth, Depth),
        shift=check("expression_shift", shift, NotNegative),
        dispersion=check("dispersion", dispersion, NotNegative),
    )


def _extent(shape: tuple[int, int], mpp: float) -> str:
    return f"{shape[0]} x {shape[1]} px at {mpp:g} um/px ({shape[0] * mpp:g} x {shape[1] * mpp:g} um)"


def _lay_spots(tissue: Histology, section: str, *, shape: tuple[int, int], mpp: float) -> pd.DataFrame:
    """Spots with at least half their area on tissue: ``x`` and ``y`` in micrometres, and their place on the lattice."""
    rows, cols = (np.arange(int(side * mpp / PITCH_UM)) for side in shape)
    margin = [(side * mpp - n * PITCH_UM) / 2 for side, n in zip(shape, (len(rows), len(cols)), strict=True)]
    row, col = (index.ravel() for index in np.meshgrid(rows, cols, indexing="ij"))
    x, y = margin[1] + (col + 0.5) * PITCH_UM, margin[0] + (row + 0.5) * PITCH_UM
    names = [f"{section}_{c}x{r}" for c, r in zip(col + 1, row + 1, strict=True)]
    spots = pd.DataFrame({"x": x, "y": y, Keys.ARRAY_ROW: row + 1, Keys.ARRAY_COL: col + 1}, index=names)
    spots = spots[within_spot(cells_of(tissue.body), spots[["x", "y"]].to_numpy()) * GRID_UM**2 >= 0.5]
    if spots.empty:
        raise InvalidValueError(f"No spot lies on the tissue of {_extent(shape, mpp)}.", *_LARGER)
    return spots


def _assemble(
    image: NDArray[np.uint8],
    spots: pd.DataFrame,
    counts: NDArray[np.int64],
    *,
    var: pd.DataFrame,
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
        var=var.rename_axis(index=None),
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
