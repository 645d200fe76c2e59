"""Slides of STimage-1K4M, as its folder has them."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix, vstack
from scipy.spatial import cKDTree

from st_predict._collections import STIMAGE, read_stimage_metadata, stimage_slides
from st_predict._errors import Advice, InvalidValueError, NotFoundError
from st_predict._keys import Keys
from st_predict._validated import File, Positive, Text, check
from st_predict.io._anndata import from_anndata
from st_predict.io._mpp import lattice_pitch

if TYPE_CHECKING:
    from os import PathLike

    from numpy.typing import NDArray
    from spatialdata import SpatialData

__all__ = ["read_stimage"]

logger = logging.getLogger(__name__)

PITCH_UM = {"ST": 200.0, "Visium": 100.0}
"""Distance between the centres of neighbouring spots; bins of Visium HD have several sizes."""

ON_ARRAY = re.compile(r".*_(\d+)x(\d+)")
"""Name of a spot of legacy Spatial Transcriptomics: column and row of the array."""

ROWS = 256
"""Spots whose counts are read at a time."""

REGULAR = 0.1
"""Share of spots whose nearest neighbour may be at another distance than a neighbour on the lattice."""

NOTED = ("species", "tissue", "pmid", "title", "involve_cancer", "tech")


def read_stimage(
    folder: str | PathLike[str], slide: str, *, mpp: float | None = None, pitch_um: float | None = None
) -> SpatialData:
    """Read a slide of STimage-1K4M :cite:p:`Chen2024` from a downloaded copy.

    Parameters
    ----------
    folder
        Complete or partial copy of the data set. In ``ST``, ``Visium`` or ``VisiumHD``: ``coord/{slide}_coord.csv``,
        ``gene_exp/{slide}_count.csv`` and ``image/{slide}.png``, which may be a TIFF or JPEG in spite of its name.
    slide
        Name of the slide; :func:`st_predict.datasets.list_stimage` lists them.
    mpp
        Micrometres per pixel of the image. By default from the distance between neighbouring spots. The data set states
        none; required for Visium HD.
    pitch_um
        Distance between the centres of neighbouring spots, in micrometres. By default the pitch of the assay: 100 for
        Visium, 200 for legacy Spatial Transcriptomics.

    Returns
    -------
    SpatialData
        Object with:

        ``.tables["table"]``
            Counts of the spots that have a place, sparse float32. ``.obs["section"]``: the slide; ``.obs["patient"]``
            is missing, as the data set does not say whose tissue a slide is. ``.uns["stimage"]``: species, tissue,
            publication, if ``meta`` is there.
        ``.shapes[slide]``
            Spots: circles with the radius of the file.
        ``.images[f"{slide}_full_image"]``
            The image.

    Raises
    ------
    FileNotFoundError
        If a file of the slide is missing; the message names it.
    KeyError
        If there is no such slide in ``folder``.
    ValueError
        If a file is damaged or has other columns, if spots are not on a regular lattice, or if ``mpp`` is needed and not given.

    Examples
    --------
    >>> slide = "Human_Breast_Andersson_10142021_ST_A1"
    >>> sdata = st_predict.io.read_stimage("STimage-1K4M", slide)  # doctest: +SKIP
    """
    root, slide = Path(check("folder", folder, File)), check("slide", slide, Text)
    mpp, pitch_um = check("mpp", mpp, Positive | None), check("pitch_um", pitch_um, Positive | None)
    technology = _technology(root, slide)
    files = _files(root / technology, slide)
    places = _read_places(files["coord"])
    names, genes, counts = _read_counts(files["gene_exp"])
    rows = np.flatnonzero(names.isin(places.index))
    if not len(rows):
        raise InvalidValueError(
            f"{slide}: none of {len(names)} spots with counts ({list(names[:2])}...) has a place ({list(places.index[:2])}...).",
            "get both files again",
        )
    if len(rows) < max(len(names), len(places)):
        logger.info("%s: %d spots have counts and a place, of %d and %d.", slide, len(rows), len(names), len(places))
    places = places.loc[names[rows]]
    table = _table(slide, technology, places, genes=genes, counts=counts[rows])
    value, source = (mpp, "argument") if mpp else _resolution(slide, technology, table, pitch_um)
    table.uns[Keys.MPP_SOURCE] = source
    table.uns["stimage"] = _noted(root, slide)
    logger.warning(
        "%s: STimage-1K4M does not say whose tissue this is. Fill table.obs[%r] before training or evaluation, so that no patient "
        "is on both sides.",
        slide,
        Keys.PATIENT,
    )
    return from_anndata(table, files["image"], library_id=slide, mpp=value)


def _technology(root: Path, slide: str) -> str:
    slides = stimage_slides(root)
    if not slides:
        raise FileNotFoundError(
            f"{str(root)!r} is not a copy of STimage-1K4M: it has no coord/*_coord.csv in {', '.join(STIMAGE)}."
        )
    if slide not in slides:
        raise NotFoundError(
            f"There is no slide {slide!r} in {str(root)!r}; there are {len(slides)}, the first are {list(slides)[:3]}.",
            Advice("choose one with {}", "slide"),
        )
    return slides[slide]


def _files(folder: Path, slide: str) -> dict[str, Path]:
    names = {"coord": f"{slide}_coord.csv", "gene_exp": f"{slide}_count.csv", "image": f"{slide}.png"}
    files = {part: folder / part / name for part, name in names.items()}
    if missing := [str(path) for path in files.values() if not path.is_file()]:
        raise FileNotFoundError(f"Slide {slide!r} lacks {', '.join(missing)}. Download them into {str(folder)!r}.")
    return files


def _read_places(path: Path) -> pd.DataFrame:
    """Pixels and radius of the spots, by name."""
    try:
        frame = pd.read_csv(path, index_col=0)
        frame = frame[["xaxis", "yaxis", "r"]].astype(np.float64)
    except (KeyError, UnicodeDecodeError, ValueError) as error:
        raise InvalidValueError(
            f"{path} is not a file of places with the numbers xaxis, yaxis and r: {error}.", "get it again"
        ) from error
    frame.index = frame.index.astype(str)
    if not frame.index.is_unique:
        raise InvalidValueError(f"{path} has spots twice: {sorted(set(frame.index[frame.index.duplicated()]))[:3]}.")
    if len(bad := frame.index[~np.isfinite(frame).all(axis=1)]):
        raise InvalidValueError(f"{path}: {len(bad)} spots lack a number, the first is {bad[0]!r}.", "get it again")
    return frame


def _read_counts(path: Path) -> tuple[pd.Index, list[str], csr_matrix]:
    """Names of spots, genes, and counts ``(n_spots, n_genes)``."""
    names, parts, genes = [], [], []
    try:
        with pd.read_csv(path, index_col=0, chunksize=ROWS) as chunks:
            for chunk in chunks:
                genes = [str(gene) for gene in chunk.columns]
                names += [str(name) for name in chunk.index]
                parts.append(csr_matrix(chunk.to_numpy(dtype=np.float32)))
    except (UnicodeDecodeError, ValueError) as error:
        raise InvalidValueError(f"{path} is not a table of counts: {error}.", "get it again") from error
    if not parts or not genes:
        raise InvalidValueError(f"{path} holds no counts.", "get it again")
    counts = csr_matrix(vstack(parts, format="csr"))
    if not (
        np.isfinite(counts.data).all() and (counts.data >= 0).all() and (counts.data == np.rint(counts.data)).all()
    ):
        raise InvalidValueError(f"{path}: counts must be whole and not negative.", "get the raw counts")
    return pd.Index(names), genes, counts


def _table(slide: str, technology: str, places: pd.DataFrame, *, genes: list[str], counts: csr_matrix) -> AnnData:
    obs = pd.DataFrame(index=places.index)
    obs[Keys.SECTION] = pd.Categorical([slide] * len(obs))
    obs[Keys.PATIENT] = pd.Categorical([None] * len(obs), categories=[])
    on_array = [ON_ARRAY.fullmatch(name) for name in places.index]
    if technology == "ST" and all(on_array):
        obs[Keys.ARRAY_COL], obs[Keys.ARRAY_ROW] = (
            [int(match[group]) for match in on_array if match] for group in (1, 2)
        )
    table = AnnData(counts, obs=obs, var=pd.DataFrame(index=pd.Index(genes)))
    table.obsm[Keys.SPATIAL] = places[["xaxis", "yaxis"]].to_numpy()
    table.uns[Keys.SPATIAL] = {slide: {"scalefactors": {"spot_diameter_fullres": 2 * float(places["r"].median())}}}
    return table


def _resolution(slide: str, technology: str, table: AnnData, pitch_um: float | None) -> tuple[float, str]:
    """Micrometres per pixel by the distance between neighbouring spots, and where it comes from."""
    pitch_um = pitch_um or PITCH_UM.get(technology)
    if pitch_um is None:
        raise InvalidValueError(
            f"Nothing says the resolution of {slide!r}: bins of {technology} have several sizes.",
            Advice("give micrometres per pixel with {}", "mpp"),
            Advice("give the side of a bin with {}", "pitch_um"),
        )
    xy = np.asarray(table.obsm[Keys.SPATIAL], np.float64)
    columns = [Keys.ARRAY_ROW, Keys.ARRAY_COL]
    on_array = set(columns) <= set(table.obs)
    pitch = lattice_pitch(xy, table.obs[columns].to_numpy()) if on_array else _nearest(slide, xy)
    return pitch_um / pitch, f"distance between spots ({technology}: {pitch_um:g} um, {pitch:.2f} px)"


def _nearest(slide: str, xy: NDArray[np.float64]) -> float:
    """Median distance to the nearest spot, in pixels, if almost all spots have a neighbour at that distance."""
    distance: Any = cKDTree(xy).query(xy, k=2)[0][:, 1] if len(xy) > 1 else np.array([np.nan])
    pitch = float(np.median(distance))
    off = float(np.mean(~(np.abs(distance / pitch - 1) < 0.05))) if pitch > 0 else 1.0
    if off > REGULAR:
        raise InvalidValueError(
            f"The resolution of {slide!r} cannot be measured: {off:.0%} of its spots have their nearest neighbour at another "
            f"distance than the median, {pitch:.4g} px.",
            Advice("give micrometres per pixel with {}", "mpp"),
        )
    return pitch


def _noted(root: Path, slide: str) -> dict[str, str]:
    frame = read_stimage_metadata(root)
    if frame is None or slide not in frame.index:
        return {}
    row = frame.loc[[slide]].iloc[0]
    return {name: str(row[name]) for name in NOTED if name in frame and row[name]}
